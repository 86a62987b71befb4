"""What file systems are, by their names in /proc/mounts."""

#: Those that are on another machine, so that several hosts may have them.
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.beegfs", "fuse.ceph", "fuse.cephfs", "fuse.glusterfs",
    "fuse.juicefs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs",
    "panfs", "pvfs2", "smb3", "virtiofs", "wekafs",
}  # fmt: skip
