# What makes a tree of `python` one of `data`: read by rootfs/python/customize.sh, whose functions and variables
# it uses, and which calls the functions defined here.
# shellcheck shell=sh disable=SC2034,SC2154,SC2164

# Named by dependencies, and of no use in a sandbox. Each would be downloaded otherwise, with what it depends on itself:
#   python3-pythran                compiles scipy's extensions (brings gcc, Boost, Python's headers)
#   python3-pil.imagetk            pictures in windows (brings Tk and X11)
#   libjs-jquery, libjs-jquery-ui  plots in a browser
#   procps                         ps, which joblib would ask for the size of a process
#   the others                     formats of fontTools that matplotlib does not use, and tables it has no use for;
#                                  python3-lxml would bring ICU, unicode-data 8 MB
WITHOUT="python3-pythran python3-pil.imagetk libjs-jquery libjs-jquery-ui procps
         python3-brotli python3-fs python3-lxml python3-lz4 python3-sympy python3-ufolib2 unicode-data"

# libtiff reads Zstandard; libbsd, which X11's library for Pillow's ImageGrab links to, needs libmd.
KEEP="libzstd1 libmd0"

further_prune() {
    cd "$T/usr/lib/python3/dist-packages"
    # Like the stdlib's: they are two fifths of all the code.
    find . -type d \( -name tests -o -path ./joblib/test \) -prune -exec rm -rf {} +
    # mpl_toolkits is a package like any other; this would import modules in every interpreter that starts.
    rm -f matplotlib-*-nspkg.pth
    # Sources of extensions, and archives to link them with: there is no compiler.
    find . -type f \( -name '*.pyx' -o -name '*.pyx.in' -o -name '*.a' -o -name '*.c' -o -name '*.cpp' \) -delete
    # Links to jQuery, for plots in a browser.
    rm -rf matplotlib/backends/web_backend/jquery
    # A second copy of numpy's core, in a directory that Python looks into after finding the first.
    rm -rf "$T/usr/lib/python$PYVER/dist-packages/numpy"
    cd "$T/usr/bin"
    rm -f f2py* dh_numpy3 fonttools pyftmerge pyftsubset ttx
    cd "$T/usr/share"
    rm -rf gcc gdb glib-2.0 numpy3 X11
    rm -rf "$T/etc/fonts" "$T/etc/X11"
    cd /

    # The libraries lie in a directory of their own; the links that lead there are made by `update-alternatives`
    # in the package's maintainer script, which is not run.
    lib=$(find "$T/usr/lib" -maxdepth 2 -type d -name openblas-serial)
    [ -d "$lib" ] || fail "no directory openblas-serial"
    for l in libblas.so.3 liblapack.so.3 libopenblas.so.0; do
        [ -e "$lib/$l" ] || fail "OpenBLAS has no $l"
        ln -s "openblas-serial/$l" "${lib%/*}/$l"
    done
}

further_configure() {
    # Debian's is TkAgg, and there is neither Tk nor a display.
    [ "$(grep -c '^backend: TkAgg$' "$T/etc/matplotlibrc")" = 1 ] || fail "/etc/matplotlibrc names another backend"
    sed -i 's/^backend: TkAgg$/backend: Agg/' "$T/etc/matplotlibrc"
    in_tree /usr/bin/python3 -B - <<'END' || fail "cannot change the libraries"
from pathlib import Path


def change(path, old, new):
    path = Path("/usr/lib/python3/dist-packages", path)
    text = path.read_text()
    assert text.count(old) == 1, f"{path} is not the one that this was written for"
    path.write_text(text.replace(old, new))


# Otherwise every import of matplotlib makes a directory in /tmp: a program would find it there, or not, depending on whether its
# interpreter was held ready with matplotlib imported.
change(
    "matplotlib/__init__.py",
    """\
    try:
        configdir.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(str(configdir), os.W_OK) and configdir.is_dir():
            return str(configdir)
""",
    """\
    # Changed for Tako VM: whoever writes there first makes the directory.
    for nearest in (configdir, *configdir.parents):
        if nearest.exists():
            if os.access(str(nearest), os.W_OK) and nearest.is_dir():
                return str(configdir)
            break
""",
)
change(
    "matplotlib/font_manager.py",
    "    with cbook._lock_path(filename), open(filename, 'w') as fh:\n",
    "    Path(filename).parent.mkdir(parents=True, exist_ok=True)\n"
    "    with cbook._lock_path(filename), open(filename, 'w') as fh:\n",
)
# Otherwise every job looks through all fonts, which takes longer than everything else that it imports.
change(
    "matplotlib/font_manager.py",
    """\
        try:
            fm = json_load(fm_path)
        except Exception:
            pass
        else:
            if getattr(fm, "_version", object()) == FontManager.__version__:
                _log.debug("Using fontManager instance from %s", fm_path)
                return fm
""",
    """\
        # Changed for Tako VM: the fonts of the image have been listed already.
        for known in (fm_path, Path(mpl.get_data_path(), "fontlist.json")):
            try:
                fm = json_load(known)
            except Exception:
                pass
            else:
                if getattr(fm, "_version", object()) == FontManager.__version__:
                    _log.debug("Using fontManager instance from %s", known)
                    return fm
""",
)
# Settings of Intel's OpenMP, which is not here; a program would find them in its environment, or not.
for path, name, value in [
    ("sklearn/__init__.py", "KMP_DUPLICATE_LIB_OK", "True"),
    ("sklearn/__init__.py", "KMP_INIT_AT_FORK", "FALSE"),
    ("joblib/__init__.py", "KMP_INIT_AT_FORK", "FALSE"),
    ("threadpoolctl.py", "KMP_DUPLICATE_LIB_OK", "True"),
]:
    change(path, f'os.environ.setdefault("{name}", "{value}")\n', "# Changed for Tako VM: no OpenMP of Intel's.\n")
END
    in_tree /usr/bin/env MPLCONFIGDIR=/tmp/matplotlib /usr/bin/python3 -B - <<'END' || fail "cannot list the fonts"
import os

from matplotlib import font_manager, get_data_path

# Found in the order of a directory, which is another in each build; matplotlib's own come first.
fonts = font_manager.fontManager
for entries in (fonts.afmlist, fonts.ttflist):
    entries.sort(key=lambda font: (not font.fname.startswith(get_data_path()), font.fname))
assert len(fonts.ttflist) > 30, fonts.ttflist
path = os.path.join(get_data_path(), "fontlist.json")
font_manager.json_dump(fonts, path)
os.chmod(path, 0o644)
END
    rm -rf "$T/tmp/matplotlib"
}

further_audit() {
    # What an interpreter that is held ready must not have: threads, files or variables that a program would find.
    in_tree /usr/bin/python3 -B - <<'END' || fail "the libraries do not work, or leave something behind"
import os
import threading

environment = dict(os.environ)

import matplotlib.pyplot as plt
import numpy
import pandas
import sklearn.ensemble

assert os.environ == environment, os.environ
assert plt.get_backend() == "agg", plt.get_backend()
assert threading.active_count() == 1
a = numpy.eye(200)
assert (numpy.linalg.solve(a, a) == a).all()
END
}
