#!/usr/bin/env bash
# One hash of all that a wheel is made of: whoever is handed one can tell that it is of this tree.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
find CMakeLists.txt pyproject.toml csrc fastebm -type f ! -name '*.pyc' ! -name '*.so' -print0 |
  LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
