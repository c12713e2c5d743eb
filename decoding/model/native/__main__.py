"""Build the kernels for all processors into the package, for an image or a machine without a compiler."""

import platform
import sys

from superdraft.decoding.model.native.library import BUNDLED, VARIANTS, KernelsUnavailableError, build, is_x86_64


def main() -> None:
    """Build every variant; exit code 1 if one fails. On other machines than x86-64 there is nothing to build."""
    if not is_x86_64():
        sys.stderr.write(f"The kernels are for x86-64; on {platform.machine()}, torch's own are used.\n")
        return
    try:
        for variant in VARIANTS:
            sys.stderr.write(f"{build(variant, BUNDLED)}\n")
    except KernelsUnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
