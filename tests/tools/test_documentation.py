"""The hook of the site adds pages, follows links from where they are written, and turns formulas into MathML."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from RLM_clean.config import Config
from tools import documentation
from tools.documentation import linked, mathml, notebook, on_page_content, on_page_markdown, options

NOTHING: Any = None


def on_page(markdown: str, page: str) -> str:
    """What the site makes of the text of a page."""
    pages: Any = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return on_page_markdown(markdown, page=pages, config=NOTHING, files=NOTHING)


@pytest.mark.parametrize(
    ('page', 'link', 'there'),
    [
        ('index.md', 'docs/theory.md#start-here', 'theory.md#start-here'),
        ('index.md', 'docs/images/tree.png', 'images/tree.png'),
        ('index.md', 'CONTRIBUTING.md', 'contributing.md'),
        ('contributing.md', 'docs/extending.md', 'extending.md'),
        ('examples.md', '../README.md', 'index.md'),
        ('examples.md', 'results.md#filtering', 'results.md#filtering'),
        ('benchmarks.md', '../benchmarks/plain.py', 'shown/benchmarks/plain.py.md'),
        ('index.md', 'LICENSE', 'shown/LICENSE.md'),
        ('files.md', '#records', '#records'),
        ('theory.md', 'https://arxiv.org/abs/2406.00048', 'https://arxiv.org/abs/2406.00048'),
        ('theory.md', 'missing.md', 'missing.md'),
    ],
)
def test_links_lead_to_the_pages_of_the_site(page: str, link: str, there: str) -> None:
    """They are written for a code host, relative to the file. What is not there stays, for mkdocs to complain of."""
    assert on_page(f'see [this]({link}), f[0](x)', page) == f'see [this]({there}), f[0](x)'


def test_files_outside_of_the_project_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / 'other.txt').write_text('private')
    up = '/'.join(['..'] * 20)
    assert list(linked('theory.md', f'[a]({up}{tmp_path}/other.txt) [b](../LICENSE)')) == ['LICENSE']


def test_tables_of_contents_are_left_out_and_other_lists_stay() -> None:
    """The site has its own beside each page."""
    lists = '- [A](#a)\n- [B](#b)\n\n## A\n\n- [C](#c) and more\n- D\n'
    assert on_page(lists, 'recipes.md') == '## A\n\n- [C](#c) and more\n- D\n'


def test_a_notebook_becomes_markdown_with_the_outputs_that_it_holds(tmp_path: Path) -> None:
    cells = [
        new_markdown_cell('# Title\n\nSee [below](#The-End).'),
        new_code_cell(
            '1 + 1',
            outputs=[
                new_output('stream', name='stdout', text='said\n'),
                new_output('execute_result', data={'text/plain': '2'}),
                new_output('display_data', data={'image/png': base64.b64encode(b'pixels').decode(), 'text/plain': 'F'}),
                new_output(
                    'display_data', data={'text/html': '<style scoped>x</style><table class="dataframe"></table>'}
                ),
                new_output('display_data', data={'text/html': '<style>x</style><div>2</div>', 'text/plain': 'two'}),
            ],
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / 'small.ipynb')
    text, pictures = notebook(tmp_path / 'small.ipynb')
    fence = '~' * 8
    assert text.split('\n\n') == [
        '# Title',
        'See [below](#the-end).',
        f'{fence}python\n1 + 1\n{fence}',
        f'{fence}{{.text .output}}\nsaid\n{fence}',
        f'{fence}{{.text .output}}\n2\n{fence}',
        '![Figure 1 of the notebook](images/small_1.png)',
        '<div class="output">\n<table class="dataframe"></table>\n</div>',
        f'{fence}{{.text .output}}\ntwo\n{fence}\n',
    ]
    assert pictures == {'images/small_1.png': b'pixels'}


def test_the_table_of_options_has_every_option_with_its_help() -> None:
    text = options()
    rows = {row.split('`')[1]: row for row in text.splitlines() if row.startswith('| `')}
    assert list(rows) and set(rows) == {field.name for field in dataclasses.fields(Config)}
    assert all(row.replace(r'\|', '').count('|') == 4 for row in rows.values())
    assert '`128`' in rows['num_features'] and 'the number of symbols' in rows['num_features']
    assert '`rhm`' in rows['dataset']


def test_formulas_become_mathml_in_the_line_and_in_a_line_of_their_own() -> None:
    content = r'<span class="arithmatex">\(a &lt; b\)</span>, <div class="arithmatex">\[\sum_a p_a\]</div>'
    inline, block = on_page_content(content, page=NOTHING, config=NOTHING, files=NOTHING).split(', ')
    assert 'display="inline"' in inline and '&#x0003C;' in inline
    assert 'display="block"' in block and '<munder>' in block


@pytest.mark.parametrize(
    ('formula', 'part'),
    [
        (r'2 \ln v', '<mo lspace="0.17em" rspace="0.17em">ln</mo>'),
        (r'\ln v', '<mrow><mo lspace="0" rspace="0.17em">ln</mo>'),
        (r'\mathcal N(0, 1)', '<mi>\N{MATHEMATICAL SCRIPT CAPITAL N}</mi>'),
        (r'\mathcal B', '<mi>\N{SCRIPT CAPITAL B}</mi>'),
        (r'g \sim h', '<mo>&#x0223C;</mo>'),
        (r'\arg\max q', '>a</mi>'),
    ],
)
def test_what_the_converter_leaves_out_is_added(formula: str, part: str) -> None:
    text = mathml(formula, 'inline')
    assert part in text and '\\' not in text


def test_every_file_that_becomes_a_page_is_there() -> None:
    assert all((documentation.ROOT / name).is_file() for name in documentation.OUTSIDE)
