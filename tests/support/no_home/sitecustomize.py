"""For PYTHONPATH: processes whose user has no entry in the system's list, as in many containers. Unset HOME as well."""

import pwd


def _nobody(uid: int) -> pwd.struct_passwd:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


pwd.getpwuid = _nobody
