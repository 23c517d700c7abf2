"""The command line: Lightning's commands, the plain ones, and the help of them all."""
