# Runs on a node after a line that sets COMMANDS: each one's [exit code, stdout, stderr].
# All are started at once and write to files, so that none waits for another's reader.
import json
import subprocess
import tempfile

running = []
for command in COMMANDS:  # noqa: F821
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    running.append((subprocess.Popen(["sh", "-c", command], stdout=out, stderr=err), out, err))

answers = []
for process, *streams in running:
    code = process.wait()
    for stream in streams:
        stream.seek(0)
    answers.append([code, *(stream.read().decode(errors="replace") for stream in streams)])
print(json.dumps(answers))
