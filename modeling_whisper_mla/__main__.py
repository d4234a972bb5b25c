"""`python -m whisper_mla`, for launchers that start a module on several processes: the command line."""

from whisper_mla.command_line.app import main

if __name__ == "__main__":
    main()
