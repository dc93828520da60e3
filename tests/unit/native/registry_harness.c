/* One file in memory stands for SYSTEM.reg and the file system below cm/registry.c. */
#include "ob.h"

CHAR HarnessFile[1 << 20];
ULONG HarnessFileSize;
NTSTATUS HarnessStoreStatus;

static BOOLEAN IsRegistry(PCSTR Path) {
    return strcmp(Path, "Windows\\System32\\config\\SYSTEM.reg") == 0;
}
NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size) {
    if (!IsRegistry(Path) || !HarnessFileSize) return STATUS_OBJECT_NAME_NOT_FOUND;
    *Buffer = ExAllocatePoolWithTag(NonPagedPool, HarnessFileSize + 1, 0);
    memcpy(*Buffer, HarnessFile, HarnessFileSize);
    ((PCHAR)*Buffer)[HarnessFileSize] = 0;
    *Size = HarnessFileSize;
    return STATUS_SUCCESS;
}
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size) {
    if (!IsRegistry(Path) || Size > sizeof(HarnessFile)) return STATUS_DISK_FULL;
    if (!NT_SUCCESS(HarnessStoreStatus)) return HarnessStoreStatus;
    memcpy(HarnessFile, Buffer, Size);
    HarnessFileSize = Size;
    return STATUS_SUCCESS;
}
NTSTATUS HalDiskFlush(void) { return STATUS_SUCCESS; }
