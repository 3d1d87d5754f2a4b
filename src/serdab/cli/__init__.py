# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per verb, which parses, calls and prints, and decides nothing else.

``main`` knows the verbs by name and imports the one that is asked for; ``parsing`` makes argparse
raise our errors; ``messages`` is how errors and results look; ``exitcodes`` is the promised table.
"""
