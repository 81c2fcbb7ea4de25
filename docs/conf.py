"""What Sphinx is told; tools/website.py collects the pages that it reads, and says where the reading starts."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "docs")]

from website import MATHJAX, TITLE

project = html_title = TITLE
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "extension",
]

# Notebooks: shown with the outputs they hold, never executed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The reference, from docstrings in Google's style. `x` in a docstring is code, and so is ``x``.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

# Formulas are drawn as SVG, by one file: no font has to be fetched, which some browsers refuse for files on a disk.
mathjax_path = MATHJAX.name
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_static_path = [str(ROOT / "docs" / "style.css"), str(ROOT / "docs" / "accessible.js"), str(MATHJAX)]
html_css_files = ["style.css"]
html_js_files = ["accessible.js"]
html_use_index = html_domain_indices = False
html_show_sphinx = html_show_copyright = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "footer_content_items": [],
    "logo": {"text": project},
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
