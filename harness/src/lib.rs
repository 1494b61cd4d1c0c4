//! Boots the WOPR stack as two machines, breaks what lies between them, and proves what the platform does about it.
