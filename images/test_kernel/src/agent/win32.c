/* NTSTATUS to Win32 error codes and messages (Microsoft Learn, "System Error Codes"). */
#include "agent.h"

static const struct {
    ULONG Error;
    NTSTATUS Status;
    PCSTR Text; /* at the error's first place */
} Win32Errors[] = {{0, STATUS_SUCCESS, "The operation completed successfully."},
    {2, STATUS_OBJECT_NAME_NOT_FOUND, "The system cannot find the file specified."},
    {2, STATUS_NO_SUCH_FILE, NULL},
    {3, STATUS_OBJECT_PATH_NOT_FOUND, "The system cannot find the path specified."},
    {5, STATUS_ACCESS_DENIED, "Access is denied."}, {5, STATUS_FILE_IS_A_DIRECTORY, NULL},
    {6, STATUS_INVALID_HANDLE, "The handle is invalid."},
    {8, STATUS_NO_MEMORY, "Not enough memory resources are available to process this command."},
    {31, STATUS_UNSUCCESSFUL, "A device attached to the system is not functioning."},
    {32, STATUS_SHARING_VIOLATION,
        "The process cannot access the file because it is being used by another process."},
    {50, STATUS_NOT_SUPPORTED, "The request is not supported."},
    {87, STATUS_INVALID_PARAMETER, "The parameter is incorrect."},
    {112, STATUS_DISK_FULL, "There is not enough space on the disk."},
    {123, STATUS_OBJECT_NAME_INVALID,
        "The filename, directory name, or volume label syntax is incorrect."},
    {127, STATUS_ENTRYPOINT_NOT_FOUND, "The specified procedure could not be found."},
    {193, STATUS_INVALID_IMAGE_FORMAT, "%1 is not a valid Win32 application."},
    {216, STATUS_IMAGE_MACHINE_TYPE_MISMATCH_EXE,
        "This version of %1 is not compatible with the version of Windows you're running. Check "
        "your computer's system information and then contact the software publisher."},
    {259, STATUS_NO_MORE_ENTRIES, "No more data is available."},
    {1052, 0, "The requested control is not valid for this service."},
    {1056, STATUS_IMAGE_ALREADY_LOADED, "An instance of the service is already running."},
    {1058, 0,
        "The service cannot be started, either because it is disabled or because it has no "
        "enabled devices associated with it."},
    {1060, 0, "The specified service does not exist as an installed service."},
    {1062, 0, "The service has not been started."},
    {1073, 0, "The specified service already exists."},
    {1117, STATUS_IO_DEVICE_ERROR,
        "The request could not be performed because of an I/O device error."},
    {1450, STATUS_INSUFFICIENT_RESOURCES,
        "Insufficient system resources exist to complete the requested service."}};

ULONG Win32Error(NTSTATUS Status) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Errors); i++)
        if (Win32Errors[i].Status == Status) return Win32Errors[i].Error;
    return 317; /* ERROR_MR_MID_NOT_FOUND: what Windows returns for a status it cannot map */
}

PCSTR Win32Message(ULONG Error) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Errors); i++)
        if (Win32Errors[i].Error == Error) return Win32Errors[i].Text;
    return "(no message)";
}
