"""`appliance doctor`: what this host lacks and what that costs, and a bundle for a bug report. Runs without the server.

main.py        arguments, output, exit status
facts.py       looks at the host; changes nothing
checks.py      facts -> findings. Pure
finding.py     what a finding is
bundle.py      the archive for a bug report
redaction.py   what must not be in it. Pure
"""
