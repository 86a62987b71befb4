"""For the hosts of every inventory; a group's or host's own data goes over this."""

_sudo = True  # the SSH user needs sudo without a password; False when it is root
