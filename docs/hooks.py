"""For the site: the scripts of docs/examples as pages and notebooks, from their `# %%` cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File


def on_files(files: Any, config: Any) -> Any:
    """A page per script, with the script and, made of the same cells, a notebook to download."""
    for script in sorted(Path(config.docs_dir, "examples").glob("*.py")):
        notebook = jupytext.read(script)
        name = f"examples/{script.stem}"
        made = {
            f"{name}.ipynb": jupytext.writes(notebook, fmt="ipynb"),
            f"{name}.md": page(script, notebook),
        }
        for path, content in made.items():
            files.append(File.generated(config, path, content=content))
    return files


def page(script: Path, notebook: Any) -> str:
    """Markdown cells as they are, code in fences; links to both files under the title."""
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in notebook.cells
    ]
    title, *rest = cells
    links = f"[Script]({script.name}) · [notebook]({script.stem}.ipynb)"
    head, _, text = title.partition("\n")
    return "\n\n".join([head, links, text.strip(), *rest])
