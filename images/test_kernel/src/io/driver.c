/* Driver images: mapped, linked against the kernel's exports, protected, started, stopped. */
#include "image.h"
#include "ke.h"
#include "mm.h"

typedef struct _IMAGE_EXPORT_DIRECTORY {
    ULONG Unused[6], NumberOfNames, AddressOfFunctions, AddressOfNames, AddressOfNameOrdinals;
} IMAGE_EXPORT_DIRECTORY;
ASSERT_OFFSET(IMAGE_EXPORT_DIRECTORY, AddressOfFunctions, 0x1C);
typedef struct _IMAGE_IMPORT_DESCRIPTOR {
    ULONG OriginalFirstThunk, Unused[2], Name, FirstThunk;
} IMAGE_IMPORT_DESCRIPTOR;

LIST_ENTRY PsLoadedModuleList = {&PsLoadedModuleList, &PsLoadedModuleList};
LIST_ENTRY IopDrivers = {&IopDrivers, &IopDrivers};
CHAR IopLoadError[160];
static PKLDR_DATA_TABLE_ENTRY PsNtosImage;
void MiRememberUnloadedDriver(PKLDR_DATA_TABLE_ENTRY Entry);
#define REFUSE(status, ...) (RtlFormat(IopLoadError, sizeof(IopLoadError), __VA_ARGS__), (status))

static PKLDR_DATA_TABLE_ENTRY MiInsertModule(PVOID Base, PCSTR FullName, PCSTR BaseName) {
    PIMAGE_NT_HEADERS64 Headers = RtlImageNtHeader(Base);
    PKLDR_DATA_TABLE_ENTRY Entry = ExAllocatePool2(0x40, sizeof(*Entry), 'dLmM');
    IMAGE_DATA_DIRECTORY *Exceptions = &Headers->DataDirectory[DIRECTORY_EXCEPTION];
    Entry->DllBase = Base;
    Entry->EntryPoint = (PUCHAR)Base + Headers->AddressOfEntryPoint;
    Entry->SizeOfImage = Headers->SizeOfImage;
    Entry->CheckSum = Headers->CheckSum;
    Entry->TimeDateStamp = Headers->TimeDateStamp;
    Entry->ExceptionTable = (PUCHAR)Base + Exceptions->VirtualAddress;
    Entry->ExceptionTableSize = Exceptions->Size;
    Entry->Flags = 0x09104000;
    Entry->LoadCount = 1;
    RtlTextToUnicode(FullName, &Entry->FullDllName);
    RtlTextToUnicode(BaseName, &Entry->BaseDllName);
    InsertTailList(&PsLoadedModuleList, &Entry->InLoadOrderLinks);
    return Entry;
}

void IopInitializeModuleList(void) {
    PsNtosImage = MiInsertModule(
        (PVOID)KeLoaderBlock->KernelBase, "\\SystemRoot\\system32\\ntoskrnl.exe", "ntoskrnl.exe");
}

PKLDR_DATA_TABLE_ENTRY MiModuleFromAddress(ULONG64 Address) {
    PLIST_ENTRY Link = PsLoadedModuleList.Flink;
    for (PKLDR_DATA_TABLE_ENTRY Entry; Link != &PsLoadedModuleList; Link = Link->Flink) {
        Entry = CONTAINING_RECORD(Link, KLDR_DATA_TABLE_ENTRY, InLoadOrderLinks);
        if (Address - (ULONG64)Entry->DllBase < Entry->SizeOfImage) return Entry;
    }
    return NULL;
}

static PVOID MiFindExport(PVOID Base, PCSTR Name) {
    PUCHAR Image = Base;
    ULONG Rva = RtlImageNtHeader(Base)->DataDirectory[DIRECTORY_EXPORT].VirtualAddress;
    const IMAGE_EXPORT_DIRECTORY *Exports = (PVOID)(Image + Rva);
    const ULONG *Names = (PVOID)(Image + Exports->AddressOfNames);
    const ULONG *Functions = (PVOID)(Image + Exports->AddressOfFunctions);
    const USHORT *Ordinals = (PVOID)(Image + Exports->AddressOfNameOrdinals);
    for (ULONG Low = 0, High = Exports->NumberOfNames, Middle; Low < High;) {
        int Order = strcmp(Name, (PCSTR)Image + Names[Middle = (Low + High) / 2]);
        if (Order == 0) return Image + Functions[Ordinals[Middle]];
        Low = Order < 0 ? Low : Middle + 1;
        High = Order < 0 ? Middle : High;
    }
    return NULL;
}

static NTSTATUS MiResolveImports(PUCHAR Image, PIMAGE_NT_HEADERS64 Headers, PCSTR FileName) {
    ULONG Rva = Headers->DataDirectory[DIRECTORY_IMPORT].VirtualAddress;
    ULONG End = Headers->SizeOfImage - (ULONG)sizeof(IMAGE_IMPORT_DESCRIPTOR);
    for (IMAGE_IMPORT_DESCRIPTOR *Import = (PVOID)(Image + Rva);
         Rva && (ULONG)((PUCHAR)Import - Image) <= End && Import->Name; Import++) {
        if (Import->Name >= End || Import->FirstThunk >= End) return STATUS_INVALID_IMAGE_FORMAT;
        PCSTR Module = (PCSTR)Image + Import->Name;
        if (RtlCompareTextInsensitive(Module, "ntoskrnl.exe") &&
            RtlCompareTextInsensitive(Module, "hal.dll"))
            return REFUSE(
                STATUS_OBJECT_NAME_NOT_FOUND, "%s needs %s, which is not here", FileName, Module);
        for (PULONG64 Thunk = (PULONG64)(Image + Import->FirstThunk);
             (ULONG)((PUCHAR)Thunk - Image) <= Headers->SizeOfImage - 8 && *Thunk; Thunk++) {
            PCSTR Name = *Thunk < End ? (PCSTR)Image + *Thunk + 2 : "(an ordinal)";
            PVOID Function = *Thunk < End ? MiFindExport(PsNtosImage->DllBase, Name) : NULL;
            if (!Function)
                return REFUSE(*Thunk >> 63 ? STATUS_ORDINAL_NOT_FOUND : STATUS_ENTRYPOINT_NOT_FOUND,
                    "%s: unresolved import %s!%s", FileName, Module, Name);
            *Thunk = (ULONG64)Function;
        }
    }
    return STATUS_SUCCESS;
}

/* Lays the file out in new pages, links it, and only then protects each section as it asks. */
static NTSTATUS MiMapImage(PUCHAR File, PIMAGE_NT_HEADERS64 Headers, PCSTR Name, PUCHAR *Result) {
    ULONG Pages = (ULONG)BYTES_TO_PAGES(Headers->SizeOfImage);
    PUCHAR Image = *Result = MiReserveSystemSpace(Pages * PAGE_SIZE);
    TRY(MiMapNewPages(Image, Pages));
    PIMAGE_SECTION_HEADER Section = MiLayOutImage(File, Image, Headers);
    NTSTATUS Status = MiRelocate(Image, Headers, (ULONG64)Image);
    Status = NT_SUCCESS(Status) ? MiResolveImports(Image, Headers, Name)
                                : REFUSE(Status, "%s has bad relocations", Name);
    if (!NT_SUCCESS(Status)) MiUnmapAndFree(Image, Pages);
    TRY(Status);
    MiMapPage(Image, MiGetPhysicalAddress(Image), 0);
    for (ULONG Left = Headers->NumberOfSections; Left; Left--, Section++) {
        ULONG Flags = Section->Characteristics & SECTION_WRITE ? MI_WRITE : 0;
        if (Section->Characteristics & SECTION_EXECUTE) Flags |= MI_EXECUTE;
        for (ULONG Offset = 0; Offset < MAX(Section->VirtualSize, 1); Offset += PAGE_SIZE) {
            PUCHAR Page = Image + Section->VirtualAddress + Offset;
            MiMapPage(Page, MiGetPhysicalAddress(Page), Flags);
        }
    }
    return STATUS_SUCCESS;
}

static NTSTATUS MiLoadImage(PCSTR VolumePath, PCSTR FileName, PKLDR_DATA_TABLE_ENTRY *Result) {
    CHAR FullName[300];
    PUCHAR File, Image;
    ULONG Size;
    PIMAGE_NT_HEADERS64 Headers;
    NTSTATUS Status = FatLoadFile(VolumePath, (PVOID *)&File, &Size);
    if (!NT_SUCCESS(Status)) return REFUSE(Status, "\\%s: cannot be read", VolumePath);
    Status = MiCheckImage(File, Size, &Headers);
    Status = NT_SUCCESS(Status) ? MiMapImage(File, Headers, FileName, &Image)
                                : REFUSE(Status, "%s is not a valid x64 driver image", FileName);
    KiFree(File);
    TRY(Status);
    RtlFormat(FullName, sizeof(FullName), "\\SystemRoot%s",
        VolumePath + (RtlCompareTextInsensitiveN(VolumePath, "Windows", 7) ? 0 : 7));
    *Result = MiInsertModule(Image, FullName, FileName);
    return STATUS_SUCCESS;
}

static void MiUnloadImage(PKLDR_DATA_TABLE_ENTRY Entry) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    RemoveEntryList(&Entry->InLoadOrderLinks);
    KeLowerIrql(Irql);
    MiUnmapAndFree(Entry->DllBase, (ULONG)BYTES_TO_PAGES(Entry->SizeOfImage));
    MiRememberUnloadedDriver(Entry);
    RtlFreeUnicodeString(&Entry->FullDllName);
    KiFree(Entry);
}

PIO_DRIVER IopFindDriver(PCSTR Service) {
    for (PLIST_ENTRY Link = IopDrivers.Flink; Link != &IopDrivers; Link = Link->Flink) {
        PIO_DRIVER Driver = CONTAINING_RECORD(Link, IO_DRIVER, Link);
        if (!RtlCompareTextInsensitive(Driver->Service, Service)) return Driver;
    }
    return NULL;
}

static NOINLINE NTSTATUS PnpCallDriverEntry(PCSTR Service, PKLDR_DATA_TABLE_ENTRY Module) {
    CHAR Path[200];
    PIO_DRIVER Driver = ExAllocatePool2(0x40, sizeof(*Driver), 'virD');
    if (!Driver) return MiUnloadImage(Module), STATUS_NO_MEMORY;
    RtlCopyText(Driver->Service, sizeof(Driver->Service), Service);
    RtlFormat(Path, sizeof(Path), "\\Registry\\Machine\\System\\CurrentControlSet\\Services\\%s",
        Service);
    RtlTextToUnicode(Path, &Driver->RegistryPath);
    RtlFormat(Path, sizeof(Path), "\\Driver\\%s", Service);
    RtlTextToUnicode(Path, &Driver->Object.DriverName);
    Driver->Object.Type = 4;
    Driver->Object.Size = sizeof(DRIVER_OBJECT);
    Driver->Object.DriverStart = Module->DllBase;
    Driver->Object.DriverSize = Module->SizeOfImage;
    Driver->Object.DriverSection = Module;
    Driver->Object.DriverInit = (DRIVER_INITIALIZE *)Module->EntryPoint;
    NTSTATUS Status = Driver->Object.DriverInit(&Driver->Object, &Driver->RegistryPath);
    if (NT_SUCCESS(Status)) {
        InsertTailList(&IopDrivers, &Driver->Link);
        return STATUS_SUCCESS;
    }
    MiUnloadImage(Module);
    RtlFreeUnicodeString(&Driver->RegistryPath);
    RtlFreeUnicodeString(&Driver->Object.DriverName);
    KiFree(Driver);
    return REFUSE(Status, "%s: DriverEntry returned 0x%08x", Service, Status);
}

NOINLINE NTSTATUS IopLoadDriver(PCSTR Service) {
    CHAR KeyPath[200], ImagePath[200], Path[200];
    PKLDR_DATA_TABLE_ENTRY Module;
    IopLoadError[0] = 0;
    if (IopFindDriver(Service)) return STATUS_IMAGE_ALREADY_LOADED;
    RtlFormat(KeyPath, sizeof(KeyPath), CM_SERVICES "\\%s", Service);
    if (!CmFindKey(KeyPath)) return STATUS_OBJECT_NAME_NOT_FOUND;
    if (!NT_SUCCESS(CmQueryString(KeyPath, "ImagePath", ImagePath, sizeof(ImagePath))))
        RtlFormat(ImagePath, sizeof(ImagePath), "System32\\drivers\\%s.sys", Service);
    NTSTATUS Status = IopVolumePath(ImagePath, Path, sizeof(Path));
    PCSTR FileName = Path;
    for (PCSTR Part = Path; NT_SUCCESS(Status) && *Part; Part++)
        if (*Part == '\\') FileName = Part + 1;
    if (NT_SUCCESS(Status)) Status = MiLoadImage(Path, FileName, &Module);
    if (NT_SUCCESS(Status)) Status = PnpCallDriverEntry(Service, Module);
    if (!NT_SUCCESS(Status))
        DbgPrint("IopLoadDriver: %s refused, 0x%08x %s\n", Service, Status, IopLoadError);
    PCM_KEY Key = CmFindKey(KeyPath); /* it may be gone by now */
    if (Key) Key->LoadStatus = Status;
    return Status;
}

NTSTATUS IopUnloadDriver(PCSTR Service) {
    PIO_DRIVER Driver = IopFindDriver(Service);
    if (!Driver) return STATUS_NOT_FOUND;
    if (!Driver->Object.DriverUnload) return STATUS_NOT_SUPPORTED;
    Driver->Object.DriverUnload(&Driver->Object);
    RemoveEntryList(&Driver->Link);
    MiUnloadImage(Driver->Object.DriverSection);
    RtlFreeUnicodeString(&Driver->RegistryPath);
    RtlFreeUnicodeString(&Driver->Object.DriverName);
    KiFree(Driver);
    return STATUS_SUCCESS;
}

/* Drivers of one start type, in the registry's order: 0 boot, 1 system, 2 automatic. */
void IopLoadDrivers(ULONG Start) {
    for (PCM_KEY Key = NULL; (Key = CmNextSubkey(CM_SERVICES, Key)) != NULL;)
        if (CmQueryDword(Key->Path, "Start", 3) == Start && CmQueryDword(Key->Path, "Type", 1) == 1)
            IopLoadDriver(Key->Path + sizeof(CM_SERVICES));
}
