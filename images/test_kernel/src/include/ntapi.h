/* Types and functions of wdm.h and ntifs.h: of the exports, those that the kernel itself calls. */
#pragma once
#include "ntstructs.h"

typedef enum { NonPagedPool = 0, PagedPool = 1, NonPagedPoolNx = 512 } POOL_TYPE;
typedef enum { Executive } KWAIT_REASON;
typedef enum { NotificationEvent, SynchronizationEvent } EVENT_TYPE;
typedef enum { NotificationTimer, SynchronizationTimer } TIMER_TYPE;
typedef ULONG FILE_INFORMATION_CLASS, KEY_VALUE_INFORMATION_CLASS; /* those that are offered: */
enum { FileDirectoryInformation = 1, FileStandardInformation = 5, KeyValuePartialInformation = 2 };
typedef void CREATE_PROCESS_NOTIFY_EX(
    PEPROCESS Process, HANDLE ProcessId, PPS_CREATE_NOTIFY_INFO CreateInfo);
/* ke */
KIRQL KeGetCurrentIrql(void);
KIRQL KfRaiseIrql(KIRQL NewIrql);
void KeLowerIrql(KIRQL NewIrql);
KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock);
void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL OldIrql);
void KeInitializeEvent(PKEVENT Event, EVENT_TYPE Type, BOOLEAN State);
LONG KeSetEvent(PKEVENT Event, LONG Increment, BOOLEAN Wait);
NTSTATUS KeWaitForSingleObject(
    PVOID Object, KWAIT_REASON Reason, CHAR Mode, BOOLEAN Alertable, PLARGE_INTEGER Timeout);
void KeInitializeTimerEx(KTIMER *Timer, TIMER_TYPE Type);
BOOLEAN KeSetTimerEx(KTIMER *Timer, LARGE_INTEGER DueTime, LONG Period, PKDPC Dpc);
BOOLEAN KeCancelTimer(KTIMER *Timer);
BOOLEAN KeInsertQueueDpc(PKDPC Dpc, PVOID Argument1, PVOID Argument2);
NORETURN void KeBugCheckEx(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4);
/* ex, mm */
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Bytes, ULONG Tag);
PVOID ExAllocatePool2(ULONG64 Flags, SIZE_T Bytes, ULONG Tag);
void ExFreePoolWithTag(PVOID Block, ULONG Tag);
/* rtl */
ULONG DbgPrint(PCSTR Format, ...);
void RtlInitUnicodeString(PUNICODE_STRING Target, PCWSTR Source);
LONG RtlCompareUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase);
NTSTATUS RtlAppendUnicodeStringToString(PUNICODE_STRING Target, PCUNICODE_STRING Source);
void RtlFreeUnicodeString(PUNICODE_STRING String);
SIZE_T RtlCompareMemory(const void *A, const void *B, SIZE_T Bytes);
void *memcpy(void *Target, const void *Source, SIZE_T Bytes);
void *memmove(void *Target, const void *Source, SIZE_T Bytes);
void *memset(void *Target, int Value, SIZE_T Bytes);
int memcmp(const void *A, const void *B, SIZE_T Bytes);
SIZE_T wcslen(PCWSTR Text);
/* zw */
NTSTATUS ZwCreateFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    PIO_STATUS_BLOCK Status, PLARGE_INTEGER AllocationSize, ULONG FileAttributes, ULONG Share,
    ULONG Disposition, ULONG Options, PVOID Ea, ULONG EaLength);
NTSTATUS ZwReadFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Status, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key);
NTSTATUS ZwWriteFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Status, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key);
NTSTATUS ZwQueryInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Status, PVOID Information,
    ULONG Length, FILE_INFORMATION_CLASS Class);
NTSTATUS ZwQueryDirectoryFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Status, PVOID Information, ULONG Length, FILE_INFORMATION_CLASS Class,
    BOOLEAN Single, PUNICODE_STRING Pattern, BOOLEAN Restart);
NTSTATUS ZwClose(HANDLE Handle);
/* ob, ps */
NTSTATUS ObReferenceObjectByHandle(
    HANDLE Handle, ULONG Access, PVOID Type, CHAR Mode, PVOID *Object, PVOID Information);
LONG_PTR ObfDereferenceObject(PVOID Object);
NORETURN NTSTATUS PsTerminateSystemThread(NTSTATUS Status);
