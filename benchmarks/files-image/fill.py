"""Write so many files of one line into a directory, a hundred to a subdirectory.

Arguments: the directory, the number.
"""

import sys
from pathlib import Path

for number in range(int(sys.argv[2])):
    directory = Path(sys.argv[1], str(number // 100))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / str(number)).write_text(f"line {number}\n")
