"""For mkdocs: what pages and docstrings write for GitHub and Python becomes what a site shows."""

import importlib.resources
import re
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """The gallery to try is e3jax's own page with the data of demo.py."""
    page = importlib.resources.files("e3jax.report").joinpath("gallery.html").read_text("utf-8")
    data = Path(__file__).with_name("demo.json").read_text("utf-8")
    files.append(File.generated(config, "demo.html", content=page.replace("{{data}}", data)))


def on_page_markdown(markdown, page, config, files):
    """Links to files beside docs/ lead to the repository."""
    out = r"\]\(" + r"\.\./" * (page.file.src_uri.count("/") + 1)
    return re.sub(out, f"]({config.extra['repository']}/blob/main/", markdown)


def on_page_content(html, page, config, files):
    """Of :func:`e3jax.fit` the name is shown."""
    return re.sub(r":(?:func|mod|class|data|meth|attr):(?=<code>)", "", html)
