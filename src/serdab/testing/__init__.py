# SPDX-License-Identifier: Apache-2.0
"""What Serdab ships for testing: file systems in memory, broken hosts, broken images.

* ``memfs``      a file system in memory, as a model to compare with
* ``recording``  a host directory that writes down what is done to it
* ``crashes``    every state that a power cut may leave of such a record
* ``faults``     a host that fails at the Nth call; the two above under one name
* ``breaker``    finds where an image keeps what, and changes it
"""
