"""For mkdocs: links from a page to files beside docs/ lead to the repository."""

import re


def on_page_markdown(markdown, page, config, files):
    """The page, with ](../FILE) made absolute."""
    return re.sub(r"\]\(\.\./", f"]({config.repo_url.rstrip('/')}/blob/main/", markdown)
