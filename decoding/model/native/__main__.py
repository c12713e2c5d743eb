"""Build the kernels for all processors into the package, for an image or a machine without a compiler."""

import platform
import sys

from superdraft.decoding.model.native.library import BUNDLED, KernelsUnavailableError, build, machine_variants


def main() -> None:
    """Build every variant for this architecture; exit code 1 if one fails."""
    if not machine_variants():
        sys.stderr.write(f"The kernels are for x86-64 and ARM; on {platform.machine()}, torch's own are used.\n")
        return
    try:
        for variant in machine_variants():
            sys.stderr.write(f"{build(variant, BUNDLED)}\n")
    except KernelsUnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
