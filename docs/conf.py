"""The documentation site: `make docs` builds it into build/docs, every warning an error."""

project = "mmesid_jax"
author = "The mmesid_jax authors"
extensions = ["myst_parser"]

nitpicky = True
myst_heading_anchors = 3
highlight_language = "none"  # blocks without a language are commands and their output

html_theme = "sphinx_book_theme"
html_title = "mmesid_jax"
html_theme_options = {"use_download_button": False, "show_toc_level": 2}
html_copy_source = False
html_show_copyright = False
