/* NTSTATUS to Win32 error codes, as RtlNtStatusToDosError maps them, with the system's messages
 * (Microsoft Learn, "System Error Codes"). */
#include "agent.h"

static const struct {
    ULONG Error;
    PCSTR Message;
    NTSTATUS Statuses[3];
} Win32Errors[] = {
    {0, "The operation completed successfully.", {0}},
    {1, "Incorrect function.", {STATUS(0xC0000010), STATUS_NOT_IMPLEMENTED}},
    {2, "The system cannot find the file specified.",
        {STATUS_OBJECT_NAME_NOT_FOUND, STATUS_NO_SUCH_FILE, STATUS_NO_SUCH_DEVICE}},
    {3, "The system cannot find the path specified.", {STATUS_OBJECT_PATH_NOT_FOUND}},
    {5, "Access is denied.",
        {STATUS_ACCESS_DENIED, STATUS_FILE_IS_A_DIRECTORY, STATUS(0xC0000056)}},
    {6, "The handle is invalid.", {STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH}},
    {8, "Not enough memory resources are available to process this command.", {STATUS_NO_MEMORY}},
    {31, "A device attached to the system is not functioning.", {STATUS_UNSUCCESSFUL}},
    {32, "The process cannot access the file because it is being used by another process.",
        {STATUS_SHARING_VIOLATION}},
    {38, "Reached the end of the file.", {STATUS_END_OF_FILE}},
    {50, "The request is not supported.", {STATUS_NOT_SUPPORTED}},
    {80, "The file exists.", {0}},
    {87, "The parameter is incorrect.", {STATUS_INVALID_PARAMETER}},
    {112, "There is not enough space on the disk.", {STATUS_DISK_FULL}},
    {123, "The filename, directory name, or volume label syntax is incorrect.",
        {STATUS_OBJECT_NAME_INVALID}},
    {127, "The specified procedure could not be found.",
        {STATUS_ENTRYPOINT_NOT_FOUND, STATUS(0xC0000263)}},
    {145, "The directory is not empty.", {STATUS_DIRECTORY_NOT_EMPTY}},
    {182, "The operating system cannot run %1.", {STATUS_ORDINAL_NOT_FOUND, STATUS(0xC0000262)}},
    {183, "Cannot create a file when that file already exists.", {STATUS_OBJECT_NAME_COLLISION}},
    {193, "%1 is not a valid Win32 application.",
        {STATUS_INVALID_IMAGE_FORMAT, STATUS_IMAGE_CHECKSUM_MISMATCH, STATUS_INVALID_IMAGE_WIN_32}},
    {216,
        "This version of %1 is not compatible with the version of Windows you're running. Check "
        "your "
        "computer's system information and then contact the software publisher.",
        {STATUS_IMAGE_MACHINE_TYPE_MISMATCH_EXE}},
    {267, "The directory name is invalid.", {STATUS_NOT_A_DIRECTORY}},
    {577,
        "Windows cannot verify the digital signature for this file. A recent hardware or software "
        "change might have installed a file that is signed incorrectly or damaged, or that might "
        "be "
        "malicious software from an unknown source.",
        {STATUS(0xC0000428)}},
    {998, "Invalid access to memory location.", {STATUS_ACCESS_VIOLATION}},
    {1052, "The requested control is not valid for this service.", {0}},
    {1056, "An instance of the service is already running.", {STATUS_IMAGE_ALREADY_LOADED}},
    {1058,
        "The service cannot be started, either because it is disabled or because it has no enabled "
        "devices associated with it.",
        {0}},
    {1060, "The specified service does not exist as an installed service.", {0}},
    {1062, "The service has not been started.", {0}},
    {1073, "The specified service already exists.", {0}},
    {1117, "The request could not be performed because of an I/O device error.",
        {STATUS_IO_DEVICE_ERROR, STATUS_DISK_CORRUPT_ERROR}},
    {1168, "Element not found.", {STATUS_NOT_FOUND}},
    {1392, "The file or directory is corrupted and unreadable.", {0}},
    {1450, "Insufficient system resources exist to complete the requested service.",
        {STATUS_INSUFFICIENT_RESOURCES}},
};

ULONG Win32Error(NTSTATUS Status) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Errors); i++)
        for (ULONG j = 0; j < ARRAY_SIZE(Win32Errors[i].Statuses); j++)
            if (Win32Errors[i].Statuses[j] == Status && (Status != 0 || i == 0))
                return Win32Errors[i].Error;
    return 317; /* ERROR_MR_MID_NOT_FOUND: what Windows returns for a status it cannot map */
}

PCSTR Win32Message(ULONG Error) {
    for (ULONG i = 0; i < ARRAY_SIZE(Win32Errors); i++)
        if (Win32Errors[i].Error == Error) return Win32Errors[i].Message;
    return "The system cannot find message text for message number 0x%1 in the message file for "
           "%2.";
}
