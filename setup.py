"""Adds configs/ to the package as mmesid_jax.configs; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
  packages=[*find_namespace_packages(include=["mmesid_jax*"]), "mmesid_jax.configs"],
  package_data={"mmesid_jax.service": ["page.html"]},
  package_dir={"mmesid_jax.configs": "configs"},
)
