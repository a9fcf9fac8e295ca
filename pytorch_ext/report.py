"""Reports: rows of named columns that print as a table, with rich where it is installed, in plain text otherwise."""

from dataclasses import fields


class Report:
    """A titled list of ``rows`` (dataclass instances of one class); ``print`` it, or hand it to ``rich.print``."""

    title = ""
    row = None  # the dataclass of the rows

    def __init__(self, rows=()):
        self.rows = list(rows)

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def summary(self):
        """One line below the table."""
        return ""

    def cells(self):
        """(headings, rows) as text."""
        names = [field.name for field in fields(self.row)]
        return [name.replace("_", " ") for name in names], [
            [cell_text(getattr(row, name)) for name in names] for row in self.rows
        ]

    def __str__(self):
        headings, rows = self.cells()
        widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (headings, *rows)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(part for part in (self.title, *(line.rstrip() for line in lines), self.summary()) if part)

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        headings, rows = self.cells()
        table = Table(title=self.title)
        for heading in headings:
            table.add_column(heading)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        return Group(table, Text(self.summary()))


def cell_text(value):
    """A value as a cell has it: numbers short, nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
