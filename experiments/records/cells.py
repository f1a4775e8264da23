"""Cells of a CSV that no spreadsheet runs: `harmless` before writing, `meant` after reading.

A text that begins with = + - @, a tab or a line's end is a formula to Excel, LibreOffice and Google Sheets, so it gets
an apostrophe in front: OWASP, https://owasp.org/www-community/attacks/CSV_Injection.
"""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def harmless(cell):
    """`cell` as it may stand in a CSV: numbers, also as text, and other values stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith((*FORMULA, "'")) and not _number(cell) else cell


def meant(cell):
    """The text that harmless() made safe."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*FORMULA, "'")) else cell


def _number(text):
    try:
        float(text)
    except ValueError:
        return False
    return text[:1] not in FORMULA[4:]
