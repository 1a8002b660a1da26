def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=24, help="how many processes are killed at random moments [24]")
