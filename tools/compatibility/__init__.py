"""What other people's software does with our files: runtimes that run them, tools that change them."""
