# Every target makes .venv if need be and installs the package into it.
PYTHON ?= python3
B := .venv/bin
PHOTOS ?= data

.venv/.installed: settings.ini setup.py pyproject.toml
	test -x $(B)/python || $(PYTHON) -m venv .venv
	$(B)/pip install --quiet --editable '.[dev]'
	touch $@

.PHONY: install demo test test-slow readme clean
install: .venv/.installed

demo: install          ## the whole path on rendered scenes; ends with demo/report.html
	$(B)/latentfast demo --out demo

test: install          ## notebooks, then pytest
	OMP_NUM_THREADS=1 $(B)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 $(B)/pytest -q -n 2 --dist loadfile tests -m 'not slow'

test-slow: install     ## also what takes minutes, and what needs transformers (which makes diffusers slower to import)
	$(B)/pip install --quiet --editable '.[text,minilm]'
	$(B)/nbdev-test --n-workers 1 --flags slow
	$(B)/pytest -q tests

readme: install        ## README.md from nbs/index.ipynb
	$(B)/jupyter nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | $(B)/python scripts/readme.py > README.md

clean:                 ## everything that can be made again, but for .venv
	rm -rf build dist *.egg-info _docs _proc .pytest_cache demo
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
