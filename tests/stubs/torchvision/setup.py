"""Installs the stand-in under torchvision's distribution name, so that pip never fetches the CUDA build."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStartupHook(build_py):
    """A `.pth` file beside the module is what makes every Python of the environment, subprocesses too, see it."""

    def run(self):
        super().run()
        Path(self.build_lib).mkdir(parents=True, exist_ok=True)
        hook = Path(self.build_lib, "torchvision_stand_in.pth")
        hook.write_text("import torchvision_stand_in; torchvision_stand_in.install()\n")


setup(
    name="torchvision",
    version="0.0.0+tersor.stand.in",
    description="Lets timm import where torchvision has no build for the installed torch",
    py_modules=["torchvision_stand_in"],
    cmdclass={"build_py": BuildWithStartupHook},
)
