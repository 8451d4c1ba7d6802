"""The shape of the package: imports point one way, and nothing grows past what one can hold in one's head."""

import ast
from pathlib import Path

import pytest

import limiter_node

ROOT = Path(limiter_node.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

# cli -> app -> edge, control, cluster -> core. What each part may import of the package; `version` is the root's.
PARTS = {
    "__init__": set[str](),
    "__main__": {"cli"},
    # Most commands need no node.
    "cli": {"app", "applying", "supervisor", "control", "settings", "status", "core", "version"},
    "status": {"settings", "core"},
    "applying": {"control"},
    "app": {
        "edge",
        "control",
        "cluster",
        "core",
        "settings",
        "version",
        "clock",
        "files",
        "collector",
        "fleet",
        "gathering",
        "listeners",
        "report",
        "report_figures",
        "report_metrics",
    },
    "fleet": {"app", "core", "clock"},  # of a node it knows the type
    "gathering": {"app", "core"},
    "listeners": {"edge", "cluster", "core", "settings", "clock"},
    "supervisor": {"edge", "control", "settings", "version"},
    "report": {"edge", "control", "core", "settings", "version", "clock", "report_backends"},
    "report_figures": {"edge", "core", "version", "clock", "report", "report_backends"},
    "report_metrics": {"edge", "control", "core", "settings", "version", "clock", "report", "report_backends"},
    "report_backends": {"edge", "control", "core", "version", "clock"},
    "edge": {"edge", "core", "version", "clock"},
    "clock": set[str](),
    "collector": set[str](),
    "files": set[str](),
    "control": {"control", "core"},
    "cluster": {"cluster", "core"},
    "settings": {"core"},
    "core": {"core"},
}
IMPURE = {"asyncio", "time", "random", "socket", "logging", "os", "aiohttp", "structlog"}
IMPORTERS = {
    "uhashring": {"core/ring.py"},
    "xxhash": {"core/ring.py"},
    "aetcd": {
        "control/apply.py",
        "control/etcd.py",
        "control/etcd_link.py",
        "control/leadership.py",
    },  # to build, to send
    "grpc": {"control/etcd_link.py"},
    "httptools": {"edge/http.py"},
    "aiohttp": {"edge/admin_api.py", "edge/workers_api.py", "control/polls.py"},  # the server, and the client
    "prometheus_client": {"edge/metrics.py", "control/scrape.py"},  # to write it, and to read it
    "click": {"cli.py"},
    "yaml": {"control/source.py"},
    "uvloop": {"cli.py"},
}
# One state machine each: cut in two they would be read as one.
LINES_MAX = {
    "control/etcd.py": 490,
    "core/engine.py": 420,
    "core/keeper.py": 435,
    "edge/http.py": 405,
}
LINES_MAX_ELSEWHERE = 400
FUNCTION_LINES_MAX = 60


def imports(tree: ast.Module) -> set[str]:
    """Every module a module imports, wherever in it and for whatever purpose; `from x import y` is `x` and `x.y`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which way they point"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """The part of the package that a dotted name in it belongs to."""
    first = name.split(".")[1]
    return first if first in PARTS else "version"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    own = {part(name) for name in imports(MODULES[module]) if name.split(".")[0] == "limiter_node"}
    assert own <= PARTS[Path(module).parts[0].removesuffix(".py")]


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("core/")])
def test_the_core_knows_no_clock_loop_socket_log_or_chance(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & IMPURE


@pytest.mark.parametrize("package", IMPORTERS)
def test_a_third_party_package_is_imported_in_one_place(package: str) -> None:
    importers = {
        module for module, tree in MODULES.items() if package in {name.split(".")[0] for name in imports(tree)}
    }
    assert importers == IMPORTERS[package]


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    lines = len((ROOT / module).read_text().splitlines())
    assert lines <= LINES_MAX.get(module, LINES_MAX_ELSEWHERE)
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {Path(module).stem for module in MODULES} & {"utils", "base", "types", "interfaces"}
