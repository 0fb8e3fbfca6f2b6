"""Builds the package: the declarations come from linnet.h, the shared library from `make`.

From linnet's source tree the library is built and packed into the wheel. With LINNET_LIBRARY set, or
outside the tree, the wheel has no library, and the installed one is used; its header must be found
by pkg-config then."""
import os
import re
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70
    from wheel.bdist_wheel import bdist_wheel

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(HERE)
IN_TREE = os.path.exists(os.path.join(TREE, "linnet.h")) and os.path.exists(os.path.join(TREE, "Makefile"))
BUNDLE = IN_TREE and not os.environ.get("LINNET_LIBRARY")


def headers():
    folder = TREE
    if not IN_TREE:
        try:
            folder = subprocess.run(["pkg-config", "--variable=includedir", "linnet"], check=True,
                                    capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            sys.exit("linnet: linnet.h was not found: build from linnet's source tree, or install the library "
                     "so that pkg-config knows it")
    text = ""
    for name in ("linnet.h", "linnet_tools.h"):
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            text += f.read()
    return text


HEADER = headers()
VERSION = re.search(r'^#define LINNET_VERSION "([^"]+)"', HEADER, re.M)[1]


def declarations():
    """The headers as cffi reads them: without what is the preprocessor's, or C++'s."""
    text = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", HEADER, flags=re.M | re.S)
    return re.sub(r"^#([^\n]*\\\n)*[^\n]*$", "", text, flags=re.M)


class BuildPy(build_py):
    def run(self):
        super().run()
        from cffi import FFI

        where = os.path.join(HERE if getattr(self, "editable_mode", False) else self.build_lib, "linnet")
        os.makedirs(where, exist_ok=True)
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source("linnet._declarations", None)
        made = os.path.join(where, "_declarations.py")
        ffi.emit_python_code(made)
        with open(made, "a", encoding="utf-8") as f:
            f.write(f'VERSION = "{VERSION}"\n')
        if not BUNDLE:
            return
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(["make", "-C", TREE, "lib"], check=True, env=clean)
        library = os.path.join(where, "liblinnet.so." + VERSION.split(".")[0])
        shutil.copy(os.path.join(TREE, "build", "liblinnet.so"), library)
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", library], check=True)
        cuda = os.path.join(TREE, "liblinnet_cuda.so")
        if os.path.exists(cuda):
            shutil.copy(cuda, where)


class Wheel(bdist_wheel):
    """With a library inside a wheel is for one platform, but for any Python."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not BUNDLE

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class Bundle(Distribution):
    def has_ext_modules(self):
        return BUNDLE


setup(version=VERSION, cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel}, distclass=Bundle)
