"""How the house is built: who may import whom, and where the insides of Keras may be touched."""

import ast
import pathlib

import pytest

from keras_tricks.optimizers import _aggregated

PACKAGE = pathlib.Path(__file__).parent.parent / "keras_tricks"

# From the ground up: each room may import from those that stand in its row, which stand above it here. `_keras` and
# `_labels` are the ground floor; files that lie directly in the package are rooms too.
MAY_IMPORT = {
    "_version": (),
    "_arguments": (),
    "_keras": (),
    "_labels": ("_arguments",),
    "distribute": ("_arguments",),
    "initializers": (),
    "schedules": ("_arguments",),
    "optimizers": ("_arguments", "_keras"),
    "layers": ("_arguments", "_keras"),
    "losses": ("_arguments", "_keras", "_labels"),
    "metrics": ("_arguments", "_keras", "_labels"),
    "data": ("_arguments", "_keras", "_labels"),
    "models": ("_arguments", "_keras", "_labels", "layers", "losses", "optimizers"),
    "callbacks": ("_arguments", "_keras", "losses", "models", "optimizers", "schedules"),
    "__init__": (
        *("_version", "distribute", "initializers", "schedules", "optimizers", "layers", "losses", "metrics", "data"),
        *("models", "callbacks"),
    ),
    "catalog": ("__init__",),
    "__main__": ("catalog", "__init__"),
}

FILES = sorted(PACKAGE.rglob("*.py"))
BASE = PACKAGE / "optimizers" / "_aggregated.py"
OF_OPTIMIZERS = (BASE, PACKAGE / "_keras" / "optimizers.py")  # what these take is listed in PRIVATE_HOOKS


def tree(file):
    return ast.parse(file.read_text())


def room_of(parts):
    """The room of a module, from its path below the package: a folder, or a file that lies in none."""
    return parts[0].removesuffix(".py")


def imported(file):
    """The rooms that a file imports from, within functions too."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for first, *rest in (module.split(".") for module in modules):
            if first == "keras_tricks":
                yield room_of(rest) if rest else "__init__"


def test_rooms_import_only_from_those_below():
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in allowed), f"{room}: the table itself points up"
    for file in FILES:
        room = room_of(file.relative_to(PACKAGE).parts)
        assert room in MAY_IMPORT, f"{file} is in a room that the table does not know"
        wrong = set(imported(file)) - {room, *MAY_IMPORT[room]}
        assert not wrong, (
            f"{file.relative_to(PACKAGE)} imports from {sorted(wrong)}; {room} may from {MAY_IMPORT[room]}"
        )


def names_read(file):
    """(line, name) of the attributes that a file reads or writes, of any object."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr") and len(node.args) > 1:
            yield node.lineno, getattr(node.args[1], "value", "")


def names_given(files):
    """The names that files give to functions, classes, variables and attributes."""
    for node in (node for file in files for node in ast.walk(tree(file))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[-1]


@pytest.fixture(scope="module")
def foreign():
    """{file: [(line, name)]} of the private names that only others can have given, or that are known as Keras'."""
    ours = set(names_given(FILES)) - set(_aggregated.PRIVATE_HOOKS)

    def found(file):
        own = ours | (set() if file == BASE else set(names_given([file])))
        for line, name in names_read(file):
            if str(name).startswith("_") and not name.startswith("__") and name not in own:
                yield line, name

    return {file: [*found(file)] for file in FILES}


def test_the_insides_of_keras_are_touched_on_the_ground_floor_and_by_the_base_of_the_optimizers(foreign):
    for file, found in foreign.items():
        if file != BASE and file.parent.name != "_keras":
            assert not found, f"{file} reads what is not public: {found}"


def test_the_list_of_hooks_is_complete_and_holds_nothing_else(foreign):
    for file in OF_OPTIMIZERS:
        assert {name for _, name in foreign[file]} <= set(_aggregated.PRIVATE_HOOKS), file
    used = {name for file in OF_OPTIMIZERS for _, name in names_read(file)} | set(names_given([BASE]))
    functions = (node for node in ast.walk(tree(BASE)) if isinstance(node, ast.FunctionDef))
    used |= {part.value for function in functions for part in ast.walk(function) if isinstance(part, ast.Constant)}
    assert not (unused := set(_aggregated.PRIVATE_HOOKS) - used), f"no longer used: {unused}"


def modules_imported(file):
    """The files of the package that a file imports from, within functions too; packages stand for their `__init__`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "keras_tricks":
            base = PACKAGE.joinpath(*node.module.split(".")[1:])
            for alias in node.names:
                candidates = (base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py")
                yield next(candidate for candidate in candidates if candidate.is_file())


def test_no_modules_import_each_other_in_a_circle():
    # The package's own `__init__` is left out: it imports all that is public, for users.
    arrows = {file: set(modules_imported(file)) - {PACKAGE / "__init__.py"} for file in FILES}
    while free := [file for file in arrows if not arrows[file] & arrows.keys()]:
        for file in free:
            del arrows[file]
    assert not arrows, f"in or above a circle: {sorted(str(file.relative_to(PACKAGE)) for file in arrows)}"


def test_a_module_of_more_than_450_lines_says_why_in_its_head():
    for file in FILES:
        if len(file.read_text().splitlines()) > 450:
            assert "long because" in ast.get_docstring(tree(file)), file
