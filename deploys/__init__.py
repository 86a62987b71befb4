import sys

# pyinfra turns off writing compiled modules, which then are compiled anew in every run.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
