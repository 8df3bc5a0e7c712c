"""The facts of a recorded run, told to its policy again with no engine: does it plan the same?"""
