from jitconv.cli import main

main(prog_name="jitconv")
