"""The names of the axes of a mesh, and nothing else: they are written nowhere but here."""

# copies of the model, shards of its parameters, parts of its layers
MESH_AXES = ("data", "fsdp", "tensor")
