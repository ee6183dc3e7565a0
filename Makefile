.PHONY: check test lint types install
PY ?= python

check: test lint types   ## what CI checks, in the current environment

install:  ## editable: the only way to develop in this layout
	$(PY) -m pip install -e '.[cpu,train,dev]'

test:
	$(PY) -m pytest

lint:
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types:    ## through the link tree: mypy cannot follow setuptools' package-dir
	$(PY) tools/link_tree.py
	$(PY) -m mypy
