"""Names that outputs may not have in a data set's folder; the files of it are never replaced."""

import pytest

from mmesid_jax.data.folder.file_names import ITEMS, SEQUENCES, TIMES, USERS
from mmesid_jax.errors import UserError
from mmesid_jax.features.join_by_key import join_vectors
from mmesid_jax.features.torch_files.torch_table import convert_torch_file
from mmesid_jax.reports.code_export import export_codes
from mmesid_jax.serving.all_users import write_all_users
from mmesid_jax.serving.options import Options

JOIN = {"keys": [], "key": "key", "key_column": None, "vector_columns": None, "dtype": "float32"}
WRITERS = {
  "vectors join": (TIMES, lambda x, y: join_vectors(x, [x], y, **JOIN, missing="error")),
  "vectors convert": (TIMES, lambda x, y: convert_torch_file(x, y, name=None, overwrite=True)),
  "recommend": (ITEMS, lambda x, y: write_all_users(x, y, Options(top_k=1), overwrite=True)),
  "semantic_ids": (USERS, lambda x, y: export_codes(x, y, data_dir=None, key=None, overwrite=True)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_output_takes_the_name_of_a_file_of_the_data_set(tmp_path, writer):
  name, write = WRITERS[writer]
  for file in (ITEMS, SEQUENCES, name):
    (tmp_path / file).write_text("mine")
  with pytest.raises(UserError, match=f"{name} is a name of the data set's own; take another"):
    write(tmp_path, tmp_path / name)
  assert (tmp_path / name).read_text() == "mine"
