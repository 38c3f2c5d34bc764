"""Lists the binaries, a line each."""

import experiments

print(experiments.__doc__)
