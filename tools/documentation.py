"""What the site of mkdocs.yml has besides the pages of docs/: a hook of mkdocs, called when the site is built.

The README is the first page; the notebooks, CHANGELOG.md and CONTRIBUTING.md are pages too. The pages of the API are
made out of docstrings, the table of options out of Config, and a file of the project that a page links to gets a page
that shows it. Links between these pages are written for a code host, relative to their file, and are adapted here.
Formulas become MathML, so that a reader needs neither a script nor a network.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from RLM_clean.config import Config

ROOT = Path(__file__).resolve().parents[1]

# The pages that are not in docs/, by their files.
OUTSIDE = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'main_test.ipynb': 'main_test.md',
    'rlm_data_generation.ipynb': 'rlm_data_generation.md',
}
_FILES = {page: name for name, page in OUTSIDE.items()}
_LANGUAGES = {'.py': 'python', '.sh': 'bash', '.toml': 'toml', '.cff': 'yaml'}

# A page of the API. The signature of Config would repeat the table of options, entry by entry.
_API = '# RLM_clean.{module}\n\n::: RLM_clean.{module}\n'
_PAGES = {
    'config': '# RLM_clean.{module}\n\nThe options, their defaults and what they mean: [table](../options.md).\n\n'
    '::: RLM_clean.config.Config\n    options: {{show_root_heading: true, show_signature: false}}\n'
}

_LINK = re.compile(r'(?<=\]\()([^)\s#:]+)(?=[#)])')
_CONTENTS = re.compile(r'^(- \[[^]]+\]\(#[^)]+\)\n)+\n', re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_FENCE = '~' * 8


# ------------------------------------------------------------------ called by mkdocs


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for name, page in OUTSIDE.items():
        if name.endswith('.ipynb'):
            text, pictures = notebook(ROOT / name)
            files.append(File.generated(config, page, content=text))
            for picture, content in pictures.items():
                files.append(File.generated(config, picture, content=content))
        else:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for page in re.findall(r'\bapi/[\w.]+\.md', str(config.nav)):
        module = page.removeprefix('api/').removesuffix('.md')
        files.append(File.generated(config, page, content=_PAGES.get(module, _API).format(module=module)))
    files.append(File.generated(config, 'options.md', content=options()))
    pages = {page.src_uri: page.content_string for page in files.documentation_pages()}
    for name in sorted({target for page, text in pages.items() for target in linked(page, text)}):
        if site_uri(name) is None:
            text = block((ROOT / name).read_text(encoding='utf-8'), _LANGUAGES.get(Path(name).suffix, ''))
            page, hidden = f'shown/{name}.md', InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, page, content=f'# {name}\n\n{text}', inclusion=hidden))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the project into links to their pages, and leaves out tables of contents."""

    def adapted(match: re.Match[str]) -> str:
        target = in_project(page.file.src_uri, match[1])
        if target is None:
            return match[0]
        return os.path.relpath(site_uri(target) or f'shown/{target}.md', Path(page.file.src_uri).parent)

    # The site has a table of contents beside each page.
    return _LINK.sub(adapted, _CONTENTS.sub('', markdown, count=1))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML."""

    def formula(match: re.Match[str]) -> str:
        return mathml(html.unescape(match[3]).strip(), 'inline' if match[2] == '(' else 'block')

    return _FORMULA.sub(formula, content)


# ------------------------------------------------------------------ links


def linked(page: str, text: str) -> Iterator[str]:
    """The files of the project that a page links to, relative to its root."""
    for link in _LINK.findall(text):
        if target := in_project(page, link):
            yield target


def in_project(page: str, link: str) -> str | None:
    """The file that a link of a page leads to, relative to the root of the project, if there is one."""
    folder = (ROOT / _FILES.get(page, f'docs/{page}')).parent
    path = (folder / link).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_file() and path.is_relative_to(ROOT) else None


def site_uri(name: str) -> str | None:
    """Where the site has a file of the project, or None for one that it has only as a page that shows it."""
    return OUTSIDE.get(name) or (name.removeprefix('docs/') if name.startswith('docs/') else None)


# ------------------------------------------------------------------ options


def options() -> str:
    """A page with every option of a run: a table for each group, as `python RLM_clean/main.py --help` lists them."""
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(Config):
        choices = ', '.join(f'`{choice}`' for choice in field.metadata['choices'])
        default = '' if field.default in (None, '') else f'`{field.default}`'
        meaning = html.escape(field.metadata['help'], quote=False).replace('|', '&#124;')
        row = f'| `{field.name}` | {default} | {meaning}{f" ({choices})" if choices else ""} |'
        groups.setdefault(field.metadata['group'], ['| option | default | meaning |', '|---|---|---|']).append(row)
    parts = ['# Options of a run', 'For the command line, for `code.sh`, and for `Config` in Python.']
    for group, rows in groups.items():
        parts += [f'## {group.capitalize()}', '\n'.join(rows)]
    return '\n\n'.join(parts) + '\n'


# ------------------------------------------------------------------ formulas


def mathml(formula: str, display: str) -> str:
    """A formula of TeX as MathML, with what the converter leaves out: spaces around ln, script letters, some signs."""
    text = convert(formula.replace(r'\arg', r'\mathrm{arg}'), display=display)
    text = re.sub(r'<mi>(ln|log|exp)</mi>', r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', text)
    text = re.sub(r'(?<=<mrow><mo )lspace="0.17em"(?= rspace)', 'lspace="0"', text)
    text = re.sub(r'<mi mathvariant="script">([A-Z])</mi>', lambda letter: f'<mi>{script(letter[1])}</mi>', text)
    return text.replace('<mi>&#x0007E;</mi>', '<mo>&#x0223C;</mo>')  # distributed as


def script(letter: str) -> str:
    """A script capital letter. Some are older than the others, and have other names."""
    try:
        return unicodedata.lookup(f'MATHEMATICAL SCRIPT CAPITAL {letter}')
    except KeyError:
        return unicodedata.lookup(f'SCRIPT CAPITAL {letter}')


# ------------------------------------------------------------------ notebooks


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook, with the outputs that are stored in it, as a page of Markdown, and its pictures by their names."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            # Jupyter keeps the capitals of anchors.
            parts.append(re.sub(r'(?<=\]\()#[^)]+', lambda anchor: anchor[0].lower(), source))
            continue
        parts.append(block(source, 'python'))
        for output in cell.get('outputs', []):
            data: dict[str, Any] = output.get('data', {})
            if 'image/png' in data:
                name = f'images/{path.stem}_{len(pictures) + 1}.png'
                pictures[name] = base64.b64decode(data['image/png'])
                parts.append(f'![Figure {len(pictures)} of the notebook]({name})')
            elif 'class="dataframe"' in (table := ''.join(data.get('text/html', ''))):
                # Other objects bring style sheets that do not fit the site; they have a text too.
                text = re.sub(r'<style scoped>.*?</style>', '', table, flags=re.DOTALL)
                parts.append(f'<div class="output">\n{text}\n</div>')
            else:
                parts.append(block(''.join(data.get('text/plain', output.get('text', ''))), '{.text .output}'))
    return '\n\n'.join(parts) + '\n', pictures


def block(text: str, language: str) -> str:
    """A block of code of Markdown."""
    return f'{_FENCE}{language}\n{text.rstrip()}\n{_FENCE}'
