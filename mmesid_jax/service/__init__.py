"""The HTTP service of a trained workdir; needs the extra `serve`."""
