"""Small programs that a board's own Python runs, 3.6 and up, each alone: told on stdin, JSON out.

They look, they keep what was sent, they prove that a runtime works. Nothing of edgevit is there.
"""
