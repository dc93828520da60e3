"""A physical lab in a box: machines that the harness knows by outlet, BMC, serial port and SSH."""
