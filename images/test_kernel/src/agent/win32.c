/* NTSTATUS to Win32 error codes, as RtlNtStatusToDosError maps them, with the system's messages
 * (Microsoft Learn, "System Error Codes"). */
#include "agent.h"

static const struct {
    NTSTATUS Status;
    ULONG Error;
} Win32Codes[] = {{STATUS_SUCCESS, 0}, {STATUS_NOT_IMPLEMENTED, 1}, {STATUS(0xC0000010), 1},
    {STATUS_OBJECT_NAME_NOT_FOUND, 2}, {STATUS_NO_SUCH_FILE, 2}, {STATUS_NO_SUCH_DEVICE, 2},
    {STATUS_OBJECT_PATH_NOT_FOUND, 3}, {STATUS_ACCESS_DENIED, 5}, {STATUS_FILE_IS_A_DIRECTORY, 5},
    {STATUS_INVALID_HANDLE, 6}, {STATUS_OBJECT_TYPE_MISMATCH, 6}, {STATUS_NO_MEMORY, 8},
    {STATUS_UNSUCCESSFUL, 31}, {STATUS_SHARING_VIOLATION, 32}, {STATUS_END_OF_FILE, 38},
    {STATUS_NOT_SUPPORTED, 50}, {STATUS_INVALID_PARAMETER, 87}, {STATUS_DISK_FULL, 112},
    {STATUS_OBJECT_NAME_INVALID, 123}, {STATUS_ENTRYPOINT_NOT_FOUND, 127},
    {STATUS(0xC0000263), 127}, {STATUS_OBJECT_NAME_COLLISION, 183},
    {STATUS_INVALID_IMAGE_FORMAT, 193}, {STATUS_IMAGE_CHECKSUM_MISMATCH, 193},
    {STATUS_INVALID_IMAGE_WIN_32, 193}, {STATUS_IMAGE_MACHINE_TYPE_MISMATCH_EXE, 216},
    {STATUS_NOT_A_DIRECTORY, 267}, {STATUS_ACCESS_VIOLATION, 998},
    {STATUS_IMAGE_ALREADY_LOADED, 1056}, {STATUS_IO_DEVICE_ERROR, 1117}, {STATUS_NOT_FOUND, 1168},
    {STATUS_INSUFFICIENT_RESOURCES, 1450}};

static const struct {
    ULONG Error;
    PCSTR Text;
} Win32Messages[] = {
    {0, "The operation completed successfully."},
    {1, "Incorrect function."},
    {2, "The system cannot find the file specified."},
    {3, "The system cannot find the path specified."},
    {5, "Access is denied."},
    {6, "The handle is invalid."},
    {8, "Not enough memory resources are available to process this command."},
    {31, "A device attached to the system is not functioning."},
    {32, "The process cannot access the file because it is being used by another process."},
    {38, "Reached the end of the file."},
    {50, "The request is not supported."},
    {87, "The parameter is incorrect."},
    {112, "There is not enough space on the disk."},
    {123, "The filename, directory name, or volume label syntax is incorrect."},
    {127, "The specified procedure could not be found."},
    {183, "Cannot create a file when that file already exists."},
    {193, "%1 is not a valid Win32 application."},
    {216, "This version of %1 is not compatible with the version of Windows you're running. Check "
          "your computer's system information and then contact the software publisher."},
    {267, "The directory name is invalid."},
    {998, "Invalid access to memory location."},
    {1052, "The requested control is not valid for this service."},
    {1056, "An instance of the service is already running."},
    {1058, "The service cannot be started, either because it is disabled or because it has no "
           "enabled devices associated with it."},
    {1060, "The specified service does not exist as an installed service."},
    {1062, "The service has not been started."},
    {1073, "The specified service already exists."},
    {1117, "The request could not be performed because of an I/O device error."},
    {1168, "Element not found."},
    {1450, "Insufficient system resources exist to complete the requested service."},
};

ULONG Win32Error(NTSTATUS Status) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Codes); i++)
        if (Win32Codes[i].Status == Status) return Win32Codes[i].Error;
    return 317; /* ERROR_MR_MID_NOT_FOUND: what Windows returns for a status it cannot map */
}

PCSTR Win32Message(ULONG Error) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Messages); i++)
        if (Win32Messages[i].Error == Error) return Win32Messages[i].Text;
    return "The system cannot find message text for message number 0x%1 in the message file for "
           "%2.";
}
