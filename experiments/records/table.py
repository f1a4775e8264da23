"""Cells of CSV tables: text that a spreadsheet would take for a formula is kept text, and read back as it was.

https://owasp.org/www-community/attacks/CSV_Injection
"""

DANGEROUS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "'",
)  # the last one, so that ours can be told


def cell(text):
    """What stands in a table for a text: with an apostrophe before it where a spreadsheet would calculate."""
    return f"'{text}" if text.startswith(DANGEROUS) else text


def text(cell):
    """The text that a cell stands for."""
    return cell[1:] if cell.startswith("'") else cell
