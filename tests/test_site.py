"""The documentation builds as a site without a warning: links lead somewhere, and nothing of it needs a network."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers import ROOT, environment

from RLM_clean import analysis, exact

# The slow tests share one build.
pytestmark = pytest.mark.xdist_group('site')

NAVIGATION = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').partition('\nnav:\n')[2].partition('\ntheme:\n')[0]
# Elements whose addresses a browser loads with the page.
LOADED = {'script', 'img', 'link', 'iframe', 'source'}


class Page(HTMLParser):
    """A page of the site: its anchors, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        self.anchors |= {given[name] for name in ('id', 'name') if name in given}
        if address := given.get('src') or given.get('href'):
            (self.loads if tag in LOADED else self.links).append(address)


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CONTRIBUTING.md says."""
    folder = tmp_path_factory.mktemp('built') / 'site'
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
        cwd=ROOT,
        env=environment(NO_MKDOCS_2_WARNING='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def pages(site: Path) -> dict[Path, Page]:
    """The pages that the navigation or a link leads to."""
    return {path: Page(path) for path in site.rglob('*.html') if path.name != '404.html'}


# ---------------------------------------------------------------------- the navigation


def test_every_page_of_the_documentation_is_in_the_navigation() -> None:
    entries = re.findall(r': ([\w./]+\.md)$', NAVIGATION, re.MULTILINE)
    assert len(entries) == len(set(entries)) and 'index.md' in entries
    assert {path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md')} <= set(entries)


def test_every_module_of_exact_and_analysis_has_a_page() -> None:
    named = {f'exact.{name}' for name in exact.__all__} | {f'analysis.{name}' for name in analysis.__all__}
    listed = set(re.findall(r'- ([\w.]+): api/\1\.md$', NAVIGATION, re.MULTILINE))
    assert len(named) > 20 and named <= listed
    assert len(listed) == NAVIGATION.count('api/')


# ---------------------------------------------------------------------- the pages that are built


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_an_anchor_of_it(site: Path, pages: dict[Path, Page]) -> None:
    """Checked on what was written, whatever mkdocs checks."""
    followed = 0
    for path, page in pages.items():
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            target = target / 'index.html' if target.is_dir() else target
            assert target.is_file() and target.is_relative_to(site), f'{path.relative_to(site)}: {address}'
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f'{path.relative_to(site)}: {address}'
            followed += 1
    assert len(pages) > 50 and followed > 1000


@pytest.mark.slow
def test_a_page_loads_nothing_from_other_hosts(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads and not [address for address in page.loads if re.match(r'\w+:|//', address)], path.name


@pytest.mark.slow
def test_no_page_names_a_folder_of_the_machine(site: Path) -> None:
    private = [str(folder) for folder in (ROOT, Path.home(), site.parent) if folder != Path(folder.anchor)]
    texts = [path for path in site.rglob('*') if path.suffix in ('.html', '.js', '.json', '.xml', '.css', '.txt')]
    for path in texts:
        text = path.read_text(encoding='utf-8')
        assert not [folder for folder in private if re.search(rf'(?<!\w){re.escape(folder)}\b', text)], path.name


@pytest.mark.slow
def test_the_page_of_inference_has_each_function_with_its_docstring(site: Path) -> None:
    module = exact.inference
    functions = [f for name, f in inspect.getmembers(module, inspect.isfunction) if not name.startswith('_')]
    own = [function for function in functions if function.__module__ == module.__name__]
    page = Page(site / 'api/exact.inference.html')
    text = ' '.join(html.unescape(re.sub('<[^>]+>', '', page.text)).split())
    assert len(own) > 8
    for function in own:
        assert f'{module.__name__}.{function.__name__}' in page.anchors
        first = (inspect.getdoc(function) or '').partition('\n\n')[0].replace('`', '')
        assert first and ' '.join(first.split()) in text, function.__name__


@pytest.mark.slow
def test_every_attribute_of_a_docstring_has_a_row_of_its_own(pages: dict[Path, Page]) -> None:
    """`x, y: ...` would become an attribute named `x,`."""
    for path, page in pages.items():
        assert not re.findall(r'<code>(?:<[^>]+>)*\w+,(?:</[^>]+>)*</code>', page.text), path.name


@pytest.mark.slow
def test_formulas_are_mathml_without_a_rest_of_tex(pages: dict[Path, Page]) -> None:
    formulas = [text for page in pages.values() for text in re.findall(r'<math.*?</math>', page.text, re.DOTALL)]
    assert len(formulas) > 200 and not [text for text in formulas if '\\' in text]
    assert not [path for path, page in pages.items() if 'class="arithmatex"' in page.text]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['main_test', 'rlm_data_generation'])
def test_notebooks_are_pages_with_their_figures(site: Path, name: str) -> None:
    cells = json.loads((ROOT / f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    outputs = [output.get('data', {}) for cell in cells for output in cell.get('outputs', [])]
    figures = sum('image/png' in data for data in outputs)
    page = Page(site / f'{name}.html')
    assert figures > 5 and sum(address.startswith(f'images/{name}_') for address in page.loads) == figures
    texts = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']
    headings = re.findall(r'^## (.*)', '\n'.join(texts), re.MULTILINE)
    assert headings and all(f'{heading}<a class="headerlink"' in page.text for heading in headings)
