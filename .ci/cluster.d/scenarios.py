"""What .ci/cluster --all tries besides the main scenario."""


def run(test):
    pass
