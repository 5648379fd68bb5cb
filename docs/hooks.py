"""For mkdocs: what pages and docstrings write for GitHub and Python becomes what a site shows."""

import re


def on_page_markdown(markdown, page, config, files):
    """Links to files beside docs/ lead to the repository."""
    out = r"\]\(" + r"\.\./" * (page.file.src_uri.count("/") + 1)
    return re.sub(out, f"]({config.extra['repository']}/blob/main/", markdown)


def on_page_content(html, page, config, files):
    """Of :func:`e3jax.fit` the name is shown."""
    return re.sub(r":(?:func|mod|class|data|meth|attr):(?=<code>)", "", html)
