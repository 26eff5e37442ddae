"""Every command and every Python snippet of the documents runs, page by page in its order, on a fresh copy.

The fast tests run the snippets of the README here and read every command; the slow ones give all of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from documents import PAGES, Block, commands, copy_of_the_project, environment, parts
from helpers import ROOT
from small_runs import train
from test_init import own_registry

from RLM_clean.command_line import from_arguments
from RLM_clean.config import Config
from RLM_clean.runs import load_run

EXTENDING, OWN_LOOP, RECIPES = 'docs/extending.md', 'docs/own_loop.md', 'docs/recipes.md'

# One process follows all pages, in their order.
pytestmark = pytest.mark.xdist_group('docs')

# Commands that have tests of their own, and which.
ELSEWHERE = {
    'bash test.sh': 'the tests run inside it',
    'python -m mkdocs': 'test_site.py builds the site',
    'python -m examples.all': 'test_examples_of_training_sets.py runs it on stand-ins',
    'python -m examples.training_sets': 'test_examples_of_training_sets.py runs its quick form, as of the next one',
    'python -m examples.memorisation': 'the same test',
    'python -m examples.architectures': 'the same file',
    'python -m examples.zipf': 'the same file',
    'python -m examples.exponent': 'test_example_exponent.py',
    'python -m examples.phase_diagram': 'the same file',
    'python -m examples.root': 'test_examples.py runs its quick form, as of the next ones',
    'python -m examples.mup': 'test_examples.py',
    'python -m examples.steering': 'test_examples.py',
    'python -m examples.filtering': 'test_examples.py',
}
# What is made shorter, so that a page takes seconds: patterns, each of which some page must contain, and what takes
# their place. Runs without a length of their own have that of documents.SHORT where code.sh starts them.
SHORTER = [
    (r'\bmax_iters( = |[ =])\d+', r'max_iters\g<1>20'),
    # Errors over seeds need two of them.
    (r'\brepetitions( = |[ =])\d+', r'repetitions\g<1>2'),
    (r'\b(beta[= ]")([\d.]+ [\d.]+)[\d. ]*', r'\1\2'),
    (r'\b(beta=)([\d.]+,[\d.]+)[\d.,]*', r'\1\2'),
    (r'\b(beta = \[)([\d.]+, [\d.]+)[\d., ]*', r'\1\2'),
    (r':\d+log', ':2log'),
    (r'(-m RLM_clean\.sweep --outname .*?)( --max_iters 20)?$', r'\1 --max_iters 20 --workers 1'),
    # A cluster is not at hand: the command is read, and lists what it would submit.
    (r'(--launcher slurm .*)', r'\1 --dry-run'),
    # test_benchmarks.py runs each of them.
    (r'(python -m benchmarks\.run( --large)?).*', r'\1 --quick --repeats 1 sampler'),
    (r'(python -m examples\.(?!tree)\w+).*', r'\1 --quick'),
]
# Pages and headings whose snippets need no run and take a second once they are short.
CHEAP = ((OWN_LOOP, 'The loop'), (RECIPES, 'The root as target'))
# The languages of blocks that are followed; the others are read.
FOLLOWED = ('bash', 'python', 'toml')
READ = ('', 'math', 'sh')
# The commands that were given in the copy.
GIVEN: set[str] = set()


@pytest.fixture(scope='module')
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the project in which the first command of the README has been given."""
    folder = copy_of_the_project(tmp_path_factory.mktemp('fresh') / 'project')
    GIVEN.clear()
    GIVEN.add('bash code.sh')
    run(folder, 'bash code.sh')
    return folder


@pytest.fixture(autouse=True)
def drawn_nowhere() -> Iterator[None]:
    """Figures of snippets are drawn into memory."""
    backend = matplotlib.get_backend()
    matplotlib.use('agg')
    yield
    matplotlib.use(backend)


def run(folder: Path, command: str) -> None:
    """Gives a command to the shell, which must end well."""
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', command],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'


def shortened(text: str) -> str:
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def follow(page: str, blocks: list[Block], folder: Path) -> dict[str, Any]:
    """Does what a page says, block by block; returns the names that its snippets have defined."""
    names: dict[str, Any] = {}
    for block in blocks:
        text = shortened(block.text)
        if block.language == 'bash':
            # Commands that have become the same, on this page or another, are given once.
            lines = dict.fromkeys(line for line in text.splitlines() if not line.startswith(tuple(ELSEWHERE)))
            run(folder, '\n'.join(line for line in lines if line not in GIVEN))
            GIVEN.update(lines)
        elif block.language == 'python':
            # Errors are shown at the lines of the page.
            exec(compile('\n' * (block.line - 1) + text, ROOT / page, 'exec'), names)
        elif block.language == 'toml':
            (folder / 'betas.toml').write_text(text)
    return names


# ---------------------------------------------------------------------- fast


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, beside a short run with the name of the default one."""
    monkeypatch.chdir(tmp_path)
    train(Config(outname='results/rlm_128L1_b2_ts32768_1', max_iters=2, threads=1, device='cpu'))
    names = follow('README.md', [block for block in parts('README.md') if block.language == 'python'], tmp_path)
    assert names['excess'] > 1 and names['outcome'].status == 'done'


def under(page: str, heading: str, language: str = 'python') -> list[Block]:
    """The blocks of code under a heading of a page."""
    lines = (ROOT / page).read_text(encoding='utf-8').splitlines()
    start = lines.index(f'## {heading}') + 1
    end = next((i for i, line in enumerate(lines[start:], start) if line.startswith('## ')), len(lines))
    return [block for block in parts(page) if block.language == language and start < block.line <= end]


@pytest.mark.parametrize(('page', 'heading'), CHEAP)
def test_the_recipes_that_need_no_run_work(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty steps are enough to come closer to the best predictor."""
    monkeypatch.chdir(tmp_path)
    names = follow(page, under(page, heading), tmp_path)
    v = names['rlm'].v
    assert 0 < float(names['excess']) < math.log(v) - float(names['floor'])


def test_the_recipes_that_read_a_run_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data frame, two runs in one figure, and counts, on two runs of a few steps."""
    monkeypatch.chdir(tmp_path)
    for optim in ('sgd', 'adam'):
        train(Config(outname=f'results/{optim}', optim=optim, num_features=4, num_layers=2, max_iters=3, device='cpu'))
    for heading in ('A run as a data frame', 'Two runs in one figure', 'A table of counts beside a run'):
        follow(RECIPES, under(RECIPES, heading), tmp_path)
    assert {path.name for path in tmp_path.glob('results/*') if path.suffix == '.csv'} == {'adam.csv'}
    assert (tmp_path / 'results/two_runs.png').exists() and (tmp_path / 'results/counts.png').exists()


def test_the_numbers_of_the_worked_example_are_those_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/theory.md: what a comment says beside a `print` is what is printed, to four digits."""
    (block,) = under('docs/theory.md', 'Start here')
    exec(compile(block.text, 'docs/theory.md', 'exec'), {})
    said = re.findall(r'print.*# (.*)', block.text)
    numbers = [float(number) for line in said for number in re.findall(r'\d+\.\d+', line)]
    printed = [float(number) for number in re.findall(r'\d+\.\d+', capsys.readouterr().out)]
    assert len(numbers) == 8 and printed == pytest.approx(numbers, abs=5.1e-5)
    prose = (ROOT / 'docs/theory.md').read_text(encoding='utf-8').partition('## Start here')[2].partition('```')[0]
    for number in (numbers[6], numbers[7]):
        assert f'{number:.4f}' in prose


@pytest.mark.parametrize('page', PAGES)
def test_every_command_of_a_run_has_options_that_exist(page: str) -> None:
    starts = ('python RLM_clean/main.py ', 'python -m RLM_clean.main ')
    for line in commands(page):
        if line.startswith(starts):
            words = shlex.split(line, comments=True)
            from_arguments(words[[word.endswith(('main.py', '.main')) for word in words].index(True) + 1 :])


@pytest.mark.parametrize('page', PAGES)
def test_every_module_that_a_command_names_is_there(page: str) -> None:
    for name in re.findall(r'python -m ((?:RLM_clean|examples|benchmarks|tools)[\w.]*)', '\n'.join(commands(page))):
        path = ROOT / name.replace('.', '/')
        assert path.with_suffix('.py').exists() or (path / '__main__.py').exists(), name


@pytest.mark.parametrize('page', PAGES)
def test_every_block_has_a_language_that_the_tests_know(page: str) -> None:
    """A block in an unknown language would never be run."""
    assert {block.language for block in parts(page)} <= {*FOLLOWED, *READ}


def test_what_is_shortened_or_tested_elsewhere_is_in_some_page() -> None:
    """A list of exceptions that nobody needs would hide what is not tested."""
    whole = '\n'.join(block.text for page in PAGES for block in parts(page) if block.language in FOLLOWED)
    for command in ELSEWHERE:
        assert f'\n{command}' in f'\n{whole}', command
    for pattern, replacement in SHORTER:
        assert re.search(pattern, whole, re.MULTILINE), pattern
        whole = re.sub(pattern, replacement, whole, flags=re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that a heading gets on the pages of GitHub."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', [*PAGES, 'CHANGELOG.md'])
def test_every_link_within_the_project_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://', 'mailto:')):
            continue
        name, _, anchor = target.partition('#')
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f'{page}: {target}'
        if anchor:
            headings = re.findall(r'^#+ (.*)', path.read_text(encoding='utf-8'), re.MULTILINE)
            assert anchor in map(slug, headings), f'{page}: {target}'


def test_every_page_is_reached_from_the_readme() -> None:
    """Through links that a reader can follow, from page to page."""
    reached, waiting = set(), [ROOT / 'README.md']
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r'\]\(([^)\s#]+)', page.read_text(encoding='utf-8')):
            if target.endswith('.md') and '://' not in target:
                waiting.append((page.parent / target).resolve())
    assert {ROOT / page for page in PAGES} <= reached


def test_the_glossary_names_options_that_exist() -> None:
    """And the records by their keys."""
    text = (ROOT / 'docs/glossary.md').read_text(encoding='utf-8')
    rows = [[cell.strip() for cell in line.split('|')] for line in text.splitlines() if line.startswith('|')]
    column = {row[2].strip('`') for row in rows if re.fullmatch(r'`\w+`', row[2])}
    options = {field.name for field in dataclasses.fields(Config)}
    assert column <= options | {'testloss', 'testacc', 'excess', 'trainloss'}
    must = {'num_features', 'num_layers', 'depth', 'num_synonyms', 'seed_sample', 'regime', 'train_size', 'num_tokens'}
    assert must <= column and '`seed_samples`' in text


def test_the_formulas_name_functions_that_exist() -> None:
    """Every `module.function` of docs/theory.md is one of the package."""
    from RLM_clean import analysis, datasets, exact, measures, streams

    homes: dict[str, Any] = {'datasets': datasets, 'measures': measures, 'streams': streams}
    homes |= {name: getattr(package, name) for package in (exact, analysis) for name in package.__all__}
    text = (ROOT / 'docs/theory.md').read_text(encoding='utf-8')
    named = [name.split('.') for name in re.findall(r'`(\w+\.[\w.]+)`', text) if name.split('.')[0] in homes]
    assert len(named) > 50
    for module, *rest in named:
        place = homes[module]
        for part in rest:
            place = getattr(place, part)


def test_ruff_has_one_version() -> None:
    """The formatter of a commit is the formatter of the tests."""
    pinned = re.search(r'^ruff==(\S+)', (ROOT / 'requirements-dev.txt').read_text(), re.MULTILINE)
    hook = re.search(r'ruff-pre-commit\n\s+rev: v(\S+)', (ROOT / '.pre-commit-config.yaml').read_text())
    assert pinned and hook and pinned[1] == hook[1]


# ---------------------------------------------------------------------- slow: on a fresh copy


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if page != EXTENDING])
def test_every_command_and_snippet_of_a_page_runs(copy: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    follow(page, parts(page), copy)


@pytest.mark.slow
def test_the_examples_of_what_can_be_added_do_what_their_page_says(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language, a model and a measure; then both from the shell, in a package that has them."""
    monkeypatch.chdir(copy)
    blocks = parts(EXTENDING)
    with own_registry():
        names = follow(EXTENDING, [block for block in blocks if block.language != 'bash'], copy)
        run_of_it = load_run('results/elman')
        assert run_of_it.entropy is not None
        rules = run_of_it.rlm.rules[0]
        ratios = rules.flatten(1).double().sort(descending=True).values / rules.flatten(1).max(1, keepdim=True).values
        assert torch.allclose(ratios, torch.arange(1, 257).double() ** -1.5, rtol=1e-5)
        assert run_of_it.dynamics[-1]['excess'] < run_of_it.dynamics[0]['excess'] - 0.05
        # Before training nothing is decided.
        assert names['indecision'](run_of_it, 0) == pytest.approx(math.log(16) - run_of_it.entropy, abs=1e-3)
        assert names['indecision'](run_of_it, 20) < names['indecision'](run_of_it, 0)
    own = [block.text for block in blocks if block.language == 'python' and 'init.register_' in block.text]
    assert len(own) == 2
    (copy / 'RLM_clean/mine.py').write_text('\n'.join(own))
    init = copy / 'RLM_clean/init.py'
    before = init.read_text()
    follow(EXTENDING, [block for block in blocks if block.language == 'bash'], copy)
    init.write_text(before)
    assert len(list(copy.glob('results/ranked*/*_t20.pt'))) == 2
    assert len(list(copy.glob('results/ranked*_t20.pt'))) == 1
