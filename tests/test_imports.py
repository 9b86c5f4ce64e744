"""Who may import whom, what `import jaxpeft` costs, and that all public names are documented."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import jaxpeft as jp

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for package in ('jaxpeft', 'train', 'eval')
    for path in sorted((ROOT / package).rglob('*.py'))
}
CORE = {'base', 'factors', 'linalg', 'lowrank', 'near', 'ops', 'paths', 'ranks', 'tree', 'views'}
LATER = ('transformers', 'safetensors', 'datasets', 'optax', 'orbax', 'torch', 'matplotlib')


def imports(path):
    """Every module that a file imports, in functions too; `from a import b` counts as `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno} imports relatively'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def importers(package, *roots):
    """The files of a package that import one of `roots` or anything below it."""
    below = lambda module: any(module == r or module.startswith(f'{r}.') for r in roots)
    files = {f for f in IMPORTS if f.startswith(f'{package}/')}
    return {f for f in files if any(map(below, IMPORTS[f]))}


def test_the_reader_sees_every_form_of_import(tmp_path):
    file = tmp_path / 'x.py'
    file.write_text('import a.b as c\ndef f():\n  from d.e import g, h\n')
    assert imports(file) == {'a.b', 'd.e.g', 'd.e.h'}
    assert importers('train', 'jaxpeft')
    assert importers('eval', 'jaxpeft', 'train')


def test_packages_import_downwards_only():
    assert importers('jaxpeft', 'train', 'eval') == set()
    assert importers('train', 'eval') == {'train/run.py'}  # it ends a run by calling eval


def test_two_files_and_the_models_know_flax():
    """`flax.core` counts too: what is no Linen module needs no Flax."""
    assert {f for f in importers('jaxpeft', 'flax') if not f.startswith('jaxpeft/models/')} == {
        'jaxpeft/layers.py',
        'jaxpeft/linen.py',
    }


@pytest.mark.parametrize('name', jp.methods.names())
def test_a_method_imports_only_the_core_and_its_siblings(name):
    found = IMPORTS[f'jaxpeft/methods/{name}.py']
    own = {module.removeprefix('jaxpeft.') for module in found if module.startswith('jaxpeft')}
    siblings = {f'methods.{other}' for other in jp.methods.names()}
    inner = lambda m: m.split('.')[0] in CORE or '.'.join(m.split('.')[:2]) in siblings
    wrong = {m for m in own if not inner(m)}
    assert not wrong
    foreign = {m.split('.')[0] for m in found} - {'jaxpeft', 'jax', 'numpy'}
    assert foreign <= set(sys.stdlib_module_names)


def test_the_core_does_not_import_what_is_built_on_it():
    for name in CORE:
        upper = {m for m in IMPORTS[f'jaxpeft/{name}.py'] if m.startswith('jaxpeft.')}
        assert {m.split('.')[1] for m in upper} <= CORE, name


def test_import_needs_jax_flax_and_numpy_only():
    code = (
        'import sys, jaxpeft\n'
        f'print([name for name in {LATER!r} if name in sys.modules])\n'
        "print('jaxpeft.models.gpt_neo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[:2] == ['[]', 'True']


EXPORTS = {
    f'{prefix}.{name}': value
    for prefix, module in (('jp', jp), ('jp.models', jp.models), ('jp.methods', jp.methods))
    for name, value in vars(module).items()
    if not name.startswith('_')
    and callable(value)
    and getattr(value, '__module__', '').startswith('jaxpeft')
}


def test_the_public_names_are_those_of_the_design():
    wanted = {
        *('State', 'Method', 'Override', 'init', 'bind', 'targets', 'on', 'merge', 'penalty'),
        *('count', 'summary', 'shardings', 'save_adapter', 'load_adapter', 'prepare'),
        *('models.load', 'models.save_pretrained'),
        *('methods.knowhira', 'methods.hira', 'methods.lora'),
    }
    assert {f'jp.{name}' for name in wanted} <= set(EXPORTS)


def test_every_public_name_is_documented():
    for name, value in EXPORTS.items():
        doc = inspect.getdoc(value) or ''
        assert len(doc.split()) >= 4, f'{name} has no docstring of its own'
        assert not doc.startswith(f'{value.__name__}('), f'{name}: a docstring that Python made up'


def test_every_file_begins_with_what_it_is():
    for name, path in FILES.items():
        source = ast.parse(path.read_text())
        assert not source.body or ast.get_docstring(source), f'{name} has no module docstring'
