"""How the reports of operations read: what was done in a line or two, then lists, each under its title."""


def as_text(summary, **lists):
    lines = list(summary)
    for title, entries in lists.items():
        if entries:
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)
